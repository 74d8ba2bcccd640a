{{/* Every object is named after the release, but for the gateway's. */}}

{{- define "instance-provisioner.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "instance-provisioner.labels" -}}
{{ include "instance-provisioner.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: provisioner
app.kubernetes.io/part-of: mindroom
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Of the jobs' pods, which no Service, budget or policy of the service's own may select. */}}
{{- define "instance-provisioner.jobLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-jobs
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "instance-provisioner.gatewaySelectorLabels" -}}
app.kubernetes.io/name: instance-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "instance-provisioner.gatewayLabels" -}}
{{ include "instance-provisioner.gatewaySelectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: gateway
app.kubernetes.io/part-of: mindroom
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "instance-provisioner.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end -}}
{{- end }}
