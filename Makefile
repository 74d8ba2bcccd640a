# The commands are explained by `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
TOOLS := .tools/bin/helm .tools/bin/actionlint
PROMTOOL := .tools/bin/promtool
# Not built where another cluster is given, or all of its programs.
KUBERNETES := $(if $(CLUSTER_KUBECONFIG)$(wildcard $(KUBEBUILDER_ASSETS)/kwok),,.tools/bin/kubernetes)

# Refreshing would ask a cluster for manifests that were only rendered to files: leave those out.
RENDERED := $(if $(CLUSTER),,--exclude '**kubernetes**')
OPTIONS := $(if $(CLUSTER),--cluster) $(if $(REFRESH),--refresh $(RENDERED))

.PHONY: help up demo preview preview-comment down clean cluster cluster-down migrate psql tunnel new-env \
  test test-fast test-published check bench tools lock lock-published generate

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 17

up: .venv/.installed $(if $(CLUSTER),$(KUBERNETES)) ## Bring the dev platform up; REFRESH=1 repairs what was changed by hand, CLUSTER=1 deploys to the cluster
	@$(PYTHON) -m dev up $(OPTIONS)
	$(if $(CLUSTER),@$(PYTHON) -m dev services)

demo: .venv/.installed ## Play a customer's life on the platform of make up CLUSTER=1
	@$(PYTHON) -m dev demo

preview: .venv/.installed $(if $(CLUSTER),$(KUBERNETES)) ## Show what `make up` would change, and what breaks a policy; REFRESH=1 shows drift
	@$(PYTHON) -m dev preview --diff $(OPTIONS)

preview-comment: .venv/.installed ## Show the comment that a pull request gets; STACK=prod for that one
	@$(PYTHON) -m $(if $(STACK),ops.reviews preview $(STACK),dev preview-comment)

down: .venv/.installed ## Stop the dev PostgreSQL and cluster; their data stays
	@$(PYTHON) -m dev down

clean: .venv/.installed ## Remove the dev platform with all its data (.state/)
	@$(PYTHON) -m dev clean

cluster: .venv/.installed $(KUBERNETES) ## Start a Kubernetes cluster on loopback, for make up CLUSTER=1
	@$(PYTHON) -m dev cluster

cluster-down: .venv/.installed ## Stop that cluster; what it holds stays
	@$(PYTHON) -m dev cluster-down

migrate: .venv/.installed ## Run the migration engine on the dev database: make migrate ARGS=status
	@$(PYTHON) -m dev migrate $(ARGS)

psql: .venv/.installed ## Open psql on the dev database
	@$(PYTHON) -m dev psql

export CMD NAME
tunnel: .venv/.installed ## Open a shell that reaches the database of STACK=prod, or run CMD="..." so
	@bin/tunnel $(if $(STACK),-s $(STACK)) -- $(if $(CMD),bash -c "$$CMD","$$SHELL")

new-env: .venv/.installed ## Write the stack file of a new environment: make new-env NAME=qa
	@$(PYTHON) -m ops.new_environment "$$NAME"

# More workers than two cores: tests of the engine and of the cluster wait a part of their time.
# Servers are made and removed by the hundred: in memory, where 8 GB of it are free.
# Each worker reads all test modules, which pytest compiles by itself: it is to keep that.
ROOM := $(shell df --output=avail --block-size=1G /dev/shm 2> /dev/null | tail -n 1)
PYTEST := $(if $(filter-out 0 1 2 3 4 5 6 7,$(ROOM)),TMPDIR=/dev/shm) \
  env -u PYTHONDONTWRITEBYTECODE $(PYTHON) -m pytest --dist loadfile --no-loadscope-reorder

test: .venv/.installed $(TOOLS) $(PROMTOOL) $(KUBERNETES) ## Run all tests
	$(PYTEST) -n 4 tests

test-fast: .venv/.installed $(TOOLS) $(PROMTOOL) ## Run all but those that take long or need a cluster, on one PostgreSQL
	$(PYTEST) -n 3 -m "not long" --postgres 18 tests

test-published: .venv/.installed $(TOOLS) ## Run the published MindRoom as the pods of an instance
	$(PYTHON) -m pytest -m published tests/provisioner/test_published.py

check: .venv/.installed $(TOOLS) ## Lint, type-check, and see that generated files are current
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy .
	.venv/bin/squawk --config .squawk.toml sql/{platform,migrations,repeatable,jobs}/*.sql
	.venv/bin/yamllint --strict .
	.tools/bin/actionlint
	for chart in charts/*; do \
	  .tools/bin/helm lint --strict --quiet $$chart --values $$chart/ci/minimal-values.yaml; done
	$(PYTHON) -m migrate plan --offline
	$(PYTHON) -m docs.generate --check

bench: .venv/.installed $(TOOLS) $(KUBERNETES) ## Measure, each against a baseline in the same run
	$(PYTHON) -m bench.make_up
	$(PYTHON) -m bench.database
	$(PYTHON) -m bench.provisioner
	$(PYTHON) -m bench.gateway

generate: .venv/.installed ## Write the generated files again
	$(PYTHON) -m docs.generate

tools: $(TOOLS) $(PROMTOOL) ## Build helm, actionlint and promtool from their Go modules

lock: .venv/.installed lock-published ## Lock the dependencies again, of pyproject.toml and of MindRoom
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --group provisioner --group dev pyproject.toml \
	  --output-file requirements.txt
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --group provisioner --constraint requirements.txt \
	  --output-file provisioner/requirements.txt

PUBLISHED = $(shell $(PYTHON) -c 'from dev.published import PACKAGES; print(*PACKAGES)')

lock-published: .venv/.installed
	tr ' ' '\n' <<< "$(PUBLISHED)" | .venv/bin/uv pip compile --quiet --universal --python-version 3.12 \
	  --generate-hashes --no-header --no-annotate --output-file dev/published.txt -

.venv/.installed: requirements.txt
	python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	touch $@

# The linker sets Helm's own version and the Kubernetes version that helm template assumes.
$(TOOLS) &: tools/go.mod tools/go.sum
	version() { go list -C tools -m -f '{{.Version}}' "$$1"; }; \
	helm=$$(version helm.sh/helm/v3) && minor=$$(version k8s.io/client-go | cut -d. -f2) && \
	CGO_ENABLED=0 go build -C tools -trimpath -o ../.tools/bin/ -ldflags "-s -w \
	  -X helm.sh/helm/v3/internal/version.version=$$helm \
	  -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=$$minor \
	  -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=$$minor" tool
	touch $(TOOLS)

# Without the clients of two dozen clouds, whose targets it could discover.
$(PROMTOOL): tools/promtool/go.mod tools/promtool/go.sum
	CGO_ENABLED=0 go build -C tools/promtool -trimpath -tags remove_all_sd -o ../../$@ -ldflags "-s -w" \
	  github.com/prometheus/prometheus/cmd/promtool
	touch $@

# One binary, called by six names. The linker sets the versions that the programs say they are.
.tools/bin/kubernetes: $(addprefix tools/cluster/,go.mod go.sum main.go)
	version() { go list -C tools/cluster -m -f '{{.Version}}' "$$1"; }; \
	kubernetes=$$(version k8s.io/kubernetes) && kwok=$$(version sigs.k8s.io/kwok) && \
	minor=$$(cut -d. -f2 <<< "$$kubernetes") && \
	CGO_ENABLED=0 go build -C tools/cluster -trimpath -o ../../$@ -ldflags "-s -w \
	  -X k8s.io/component-base/version.gitVersion=$$kubernetes \
	  -X k8s.io/component-base/version.gitMajor=1 \
	  -X k8s.io/component-base/version.gitMinor=$$minor \
	  -X sigs.k8s.io/kwok/pkg/consts.Version=$$kwok"
	cd $(@D) && for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubectl kwok; \
	  do ln -sf $(@F) $$name; done
	touch $@
