{{/*
Every object is named after the release, and its component where it has one. A release name has at
most 53 characters (Helm), so that the longest name, RELEASE-mindroom, is still a DNS label.

Most templates take a list: the root context and a component's name.
*/}}

{{- define "instance.name" -}}
{{ (index . 0).Release.Name }}-{{ index . 1 }}
{{- end }}

{{- define "instance.selectorLabels" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "instance.labels" -}}
{{- with index . 0 -}}
mindroom.chat/instance: {{ .Values.instanceId | quote }}
mindroom.chat/account: {{ .Values.accountId | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: mindroom
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
{{ include "instance.selectorLabels" . }}
{{- end }}

{{/* Fewer than an object's own: a new version of the chart alone restarts nobody's pods. */}}
{{- define "instance.podLabels" -}}
mindroom.chat/instance: {{ (index . 0).Values.instanceId | quote }}
{{ include "instance.selectorLabels" . }}
{{- end }}

{{- define "instance.replicas" -}}
{{ ternary 0 1 .Values.paused }}
{{- end }}

{{/* A container's part of a whole number, rounded down: how the row's limits are split. */}}
{{- define "instance.part" -}}
{{- $parts := dict "mindroom" 4 "sandbox" 2 "matrix" (ternary 2 0 (index . 0).Values.matrix.enabled) -}}
{{- $total := add $parts.mindroom $parts.sandbox $parts.matrix -}}
{{ div (mul (index . 2) (get $parts (index . 1))) $total | max 1 }}
{{- end }}

{{/* Memory is set aside whole; of the CPU, which an idle instance hardly uses, a quarter. */}}
{{- define "instance.resources" -}}
{{- $limits := (index . 0).Values.resources -}}
{{- $cpu := include "instance.part" (append . (mulf $limits.cpu 1000)) | int -}}
{{- $memory := include "instance.part" (append . $limits.memoryMb) -}}
requests:
  cpu: {{ div $cpu 4 | max 1 }}m
  memory: {{ $memory }}Mi
limits:
  cpu: {{ $cpu }}m
  memory: {{ $memory }}Mi
{{- end }}

{{/* MindRoom's has the name that it was given when MindRoom was called the backend. */}}
{{- define "instance.volumeName" -}}
{{ (index . 0).Release.Name }}-{{ ternary "backend" (index . 1) (eq (index . 1) "mindroom") }}
{{- end }}

{{/* Kubernetes refuses to shrink a volume: after a change to a smaller tier it stays as it is. */}}
{{- define "instance.volume" -}}
{{- $root := index . 0 -}}
{{- $name := include "instance.volumeName" . -}}
{{- $mebibytes := mul $root.Values.resources.storageGb 1024 -}}
{{- if $root.Values.matrix.enabled }}
{{- $mebibytes = div (mul $mebibytes (ternary 1 3 (eq (index . 1) "matrix"))) 4 -}}
{{- end -}}
{{- $size := printf "%dMi" $mebibytes -}}
{{- with lookup "v1" "PersistentVolumeClaim" $root.Release.Namespace $name -}}
{{- with index (.metadata.labels | default dict) "mindroom.chat/instance" -}}
{{- if ne . $root.Values.instanceId }}
{{- fail (printf "the volume %s is that of another instance, %s: take another release name" $name .) }}
{{- end -}}
{{- end -}}
{{- $present := .spec.resources.requests.storage -}}
{{- $unit := get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (trimAll "0123456789" $present) -}}
{{- if or (not $unit) (gt (mul (regexFind "^[0-9]+" $present) $unit) $mebibytes) -}}
{{- $size = $present -}}
{{- end -}}
{{- end -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "instance.labels" . | nindent 4 }}
  annotations:
    # Outlives the release for as long as the plan's retention says.
    helm.sh/resource-policy: keep
spec:
  accessModes: [ReadWriteOnce]
  resources:
    requests:
      storage: {{ $size }}
{{- end }}

{{- define "instance.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "instance.name" . }}
  namespace: {{ (index . 0).Release.Namespace }}
  labels:
    {{- include "instance.labels" . | nindent 4 }}
spec:
  type: ClusterIP
  selector:
    {{- include "instance.selectorLabels" . | nindent 4 }}
  ports:
    - name: http
      port: 80
      targetPort: http
{{- end }}

{{/* What every pod has; the argument is the user, which is also the group of its volumes. */}}
{{- define "instance.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ . }}
  runAsGroup: {{ . }}
  fsGroup: {{ . }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "instance.containerSecurity" -}}
imagePullPolicy: IfNotPresent
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* The arguments are the paths that answer when the container is alive, and when it is ready. */}}
{{- define "instance.probes" -}}
startupProbe:
  httpGet:
    path: {{ index . 0 }}
    port: http
  periodSeconds: 2
  failureThreshold: 90
livenessProbe:
  httpGet:
    path: {{ index . 0 }}
    port: http
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: {{ index . 1 }}
    port: http
  periodSeconds: 5
  timeoutSeconds: 3
{{- end }}

{{/*
Whether the ingress has the gateway check API keys: whether the class is that of ingress-nginx, whose
annotations these are. Under any other nobody may use the OpenAI-compatible API.
*/}}
{{- define "instance.asksGateway" -}}
{{- if and .Values.gateway.url (eq .Values.ingress.className "nginx") }}true{{ end -}}
{{- end }}
