# Everything here works on a fresh Debian or Ubuntu that has Go, make and git; scripts/setup.sh
# installs what else is needed and says so. "make help" lists the targets.

GOLANGCI := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOTEST   := go test -race -shuffle=on -parallel 8 -timeout 15m
MODULES  := . examples integration/drivers bench
EXTERNAL := integration/containers

.PHONY: help demo test integration bench bench-quick lint fmt

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: ## a storm of repeated refunds against a service that is killed (ARGS="--help" for its flags)
	@scripts/setup.sh postgres
	@cd examples && go build -o ../.build/refund ./refund
	@.build/refund $(ARGS)

test: ## lint, then every test with the race detector, on real Postgres servers
	@scripts/setup.sh postgres race
	@$(MAKE) --no-print-directory lint
	@set -e; for m in $(MODULES); do echo "== test $$m"; (cd $$m && $(GOTEST) ./...); done

integration: ## what needs more than this machine's Postgres: a container engine (PGONCE_TEST_IMAGE="postgres:17-alpine")
	@scripts/setup.sh race
	@$(MAKE) --no-print-directory lint MODULES="$(EXTERNAL)"
	@set -e; for m in $(EXTERNAL); do echo "== integration $$m"; (cd $$m && $(GOTEST)); done

bench: ## pgonce beside its peers, and docs/benchmarks.md of it, in up to 25 minutes (ARGS="--help" for its flags)
	@scripts/setup.sh postgres redis
	@cd bench && go build -o ../.build/bench .
	@.build/bench --markdown docs/benchmarks.md $(ARGS)

bench-quick: ## the same in under 5 minutes, with less to rely on, and without the page
	@scripts/setup.sh postgres redis
	@cd bench && go build -o ../.build/bench .
	@.build/bench --quick $(ARGS)

lint: ## golangci-lint with the project's rules, and tidy modules
	@set -e; for m in $(MODULES); do echo "== lint $$m"; \
		(cd $$m && go mod tidy -diff && $(GOLANGCI) run --allow-parallel-runners --config $(CURDIR)/.golangci.yml ./...); done

fmt: ## format the code as lint wants it
	@set -e; for m in $(MODULES); do (cd $$m && $(GOLANGCI) fmt --config $(CURDIR)/.golangci.yml ./...); done
