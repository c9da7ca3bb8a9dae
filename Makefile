# Everything here works on a fresh Debian or Ubuntu that has Go, make and git; scripts/setup.sh
# installs what else is needed and says so. "make help" lists the targets.

GOLANGCI := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOTEST   := go test -race -shuffle=on -parallel 8 -timeout 15m
MODULES  := . examples integration/drivers bench
EXTERNAL := integration/containers integration/pgbouncer integration/failover integration/faults

.PHONY: help demo examples test soak integration containers pgbouncer versions failover faults bench bench-quick lint fmt

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: ## a storm of repeated refunds against a service that is killed (ARGS="--help" for its flags)
	@scripts/setup.sh postgres
	@cd examples && go build -o ../.build/refund ./refund
	@.build/refund $(ARGS)

examples: ## the storms of all examples, in under three minutes (ARGS="refund" for some)
	@scripts/setup.sh postgres
	@scripts/examples.sh $(ARGS)

test: ## lint, then every test with the race detector, on real Postgres servers
	@scripts/setup.sh postgres race
	@$(MAKE) --no-print-directory lint
	@set -e; for m in $(MODULES); do echo "== test $$m"; \
		(cd $$m && go test -race -run '^$$' ./... >/dev/null && $(GOTEST) -p 1 ./...); done # built side by side, run one by one
	@echo "== test allocations"; go test -run '^TestAllocations' ./idem # the race detector makes its own

soak: ## the safety suites at full size, with their figures (DBLOCK_SEED=1, IDEM_SEED=1 repeat the choices of a run)
	@scripts/setup.sh postgres race
	@IDEM_SOAK=1 go test -count=1 -v -timeout 120m ./idem -run '^Test(RequestsInAStorm|KilledHolderFreesItsKey|VanishedHolderFreesItsKey)$$'
	@DBLOCK_SOAK=1 go test -race -count=1 -v -parallel 2 -timeout 120m ./dblock \
		-run '^Test(History|TimeoutsLeaveNoLock|ReadModifyWrite|HotKeys|Killed(Holder|Waiter)$$|RestartUnderLoad|TokensSurvive)'

integration: ## what needs more than this machine's Postgres: a container engine, PgBouncer, Postgres 14 to 18, standbys, root
	@scripts/setup.sh postgres race
	@$(MAKE) --no-print-directory lint MODULES="$(EXTERNAL)"
	@$(MAKE) --no-print-directory -k containers pgbouncer versions failover faults

containers: ## the suite on a container of PGONCE_TEST_IMAGE (postgres:17-alpine)
	@echo "== integration containers"; cd integration/containers && $(GOTEST)

pgbouncer: ## the suite through PgBouncer below 1.21 and above, built from source (or PGONCE_PGBOUNCER=path:path)
	@scripts/setup.sh postgres race
	@echo "== integration pgbouncer"; scripts/pgbouncer.sh || true # the tests say what is missing
	@cd integration/pgbouncer && $(GOTEST) -timeout 40m

versions: ## the tests on Postgres 14 to 18 (ARGS="14 18" for some)
	@scripts/setup.sh race
	@scripts/versions.sh $(ARGS)

failover: ## a standby is promoted under load, synchronous and asynchronous (needs pg_basebackup)
	@scripts/setup.sh postgres race
	@echo "== integration failover"; cd integration/failover && $(GOTEST) -timeout 20m

faults: ## a full disk and a server's clock that is stepped (needs root and libfaketime, which scripts/setup.sh installs)
	@scripts/setup.sh postgres race
	@echo "== integration faults"; scripts/setup.sh faults || true # the tests say what is missing
	@cd integration/faults && $(GOTEST) -timeout 20m

bench: ## pgonce beside its peers, and docs/benchmarks.md of it, in up to 25 minutes (ARGS="--help" for its flags)
	@scripts/setup.sh postgres redis
	@cd bench && go build -o ../.build/bench .
	@.build/bench --markdown docs/benchmarks.md $(ARGS)

bench-quick: ## the same in under 5 minutes, with less to rely on, and without the page
	@scripts/setup.sh postgres redis
	@cd bench && go build -o ../.build/bench .
	@.build/bench --quick $(ARGS)

lint: ## golangci-lint with the project's rules, tidy modules, and an API that keeps what the last release promised
	@set -e; for m in $(MODULES); do echo "== lint $$m"; \
		(cd $$m && go mod tidy -diff && $(GOLANGCI) run --allow-parallel-runners --config $(CURDIR)/.golangci.yml ./...); done
	@echo "== lint API"; scripts/apidiff.sh

fmt: ## format the code as lint wants it
	@set -e; for m in $(MODULES); do (cd $$m && $(GOLANGCI) fmt --config $(CURDIR)/.golangci.yml ./...); done
