# walgate: everything a newcomer types. `make demo` and `make test` do all the set-up themselves.

CARGO ?= cargo
.DEFAULT_GOAL := help
# The features that bring a sink, from Cargo.toml.
SINKS := $(shell sed -n 's/^\([a-z-]*\) = \["dep:walgate-sink-.*/\1/p' Cargo.toml)
# What `make build` builds: `make build FEATURES=full`.
FEATURES ?= default

.PHONY: help setup build demo test test-matrix soak fuzz lint planted bench bench-park clean-cache

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

setup: ## install what the demo and the tests need and this machine lacks
	@tests/setup.sh

build: ## build the release binary: target/release/walgate (FEATURES=full, or FEATURES=kafka,sqs beside the default ones)
	@tests/setup.sh $(if $(findstring kafka,$(FEATURES))$(findstring full,$(FEATURES)),,demo)
	$(CARGO) build --release --locked --features $(FEATURES)

demo: build ## the vanished order, and how it becomes impossible (a PostgreSQL of its own, under a minute)
	@target/release/walgate demo

test: setup ## every test, against real servers
	$(CARGO) test --workspace --locked --features full

test-matrix: setup ## the end-to-end tests on PostgreSQL 14, 16, 17, 18, nats-server 2.15, Kafka 3.9, RabbitMQ 4.0 (PG="18 14" FILTER=nats)
	@tests/matrix.sh

soak: setup ## faults at random against a fan-out to all five sinks (SOAK_MINUTES=10 SOAK_SEED=1)
	SOAK_MINUTES=$${SOAK_MINUTES:-10} $(CARGO) test --locked --features full --test e2e -- --ignored --nocapture soak

fuzz: ## 100,000,000 random templates (FUZZ_RUNS=100000000 FUZZ_SEED=1)
	FUZZ_RUNS=$${FUZZ_RUNS:-100000000} $(CARGO) test --release --locked --features full --lib x8_random

lint: ## format, clippy with warnings denied, each feature on its own, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked --features full -- -D warnings
	$(CARGO) clippy --locked --no-default-features --lib --bins -- -D warnings
	@for sink in $(SINKS); do \
	  echo "clippy --features $$sink"; \
	  $(CARGO) clippy --locked --no-default-features --features $$sink --lib --bins -- -D warnings || exit 1; \
	done
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --locked check bans licenses sources; \
	 else echo "cargo-deny is not installed: licences and duplicate crates were not checked (cargo install cargo-deny)"; fi

planted: setup ## plant known bugs one by one: each must be caught by its named test
	@tests/planted/run.sh

bench: setup ## drain a backlog into a sink beside pg_recvlogical (ROWS=1000000 KEYS=10000 SINK=nats or webhook; see benches/drain.sh)
	@case "$(SINK)" in webhook*) cargo build --release --locked --example bench-receiver ;; esac
	@benches/drain.sh

bench-park: setup ## park a backlog and deliver it from the table, beside the plain way (ROWS=300000 KEYS=10000; see benches/park.sh)
	$(CARGO) build --release --locked --bin walgate --example bench-receiver
	@benches/park.sh

clean-cache: ## remove downloaded servers (.cache)
	rm -rf .cache
