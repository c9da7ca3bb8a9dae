//go:build unix

// Package containers runs the conformance suite against Postgres in a container, over TCP and with
// a password, as most users will run it in their own tests.
package containers_test

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/conformance"
	"github.com/pgonce/pgonce/internal/pgtest"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/modules/postgres"
)

const (
	imageVariable = "PGONCE_TEST_IMAGE"
	defaultImage  = "postgres:17-alpine"
	startTimeout  = 5 * time.Minute // there may be an image to pull
)

func TestMain(m *testing.M) {
	if err := engine(); err != nil {
		fmt.Printf("integration/containers: NOT RUN: no container engine answers (DOCKER_HOST=%q): %v\n", os.Getenv("DOCKER_HOST"), err)
		if os.Getenv("CI") != "" {
			os.Exit(1)
		}
		return
	}
	code, err := runOn(m, cmp.Or(os.Getenv(imageVariable), defaultImage))
	if err != nil {
		fmt.Printf("integration/containers: %v\n", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// engine asks the container engine whether it is there.
func engine() (err error) {
	defer func() {
		if r := recover(); r != nil { // the library panics where it finds none
			err = fmt.Errorf("%v", r)
		}
	}()
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return err
	}
	defer func() { _ = provider.Close() }()
	return provider.Health(context.Background())
}

// runOn runs the tests on a container of image, which is gone afterwards.
func runOn(m *testing.M, image string) (code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	const data = "/pgdata" // in memory: copies of databases make a disk stall for longer than tests wait
	container, err := postgres.Run(ctx, image,
		testcontainers.WithTmpfs(map[string]string{data: "rw"}), testcontainers.WithEnv(map[string]string{"PGDATA": data}),
		postgres.WithUsername("tester"), postgres.WithPassword("secret"), postgres.WithDatabase("pgonce"),
		testcontainers.WithCmdArgs("-c", "max_connections=200", "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"),
		postgres.BasicWaitStrategies())
	defer func() {
		if stop := testcontainers.TerminateContainer(container); stop != nil && err == nil {
			err = fmt.Errorf("remove the container: %w", stop)
		}
	}()
	if err != nil {
		return 0, fmt.Errorf("start a container of %s (%s names another image): %w", image, imageVariable, err)
	}
	url, err := container.ConnectionString(ctx, "sslmode=disable")
	if err != nil {
		return 0, err
	}
	if err := os.Setenv("PGONCE_TEST_URL", url); err != nil {
		return 0, err
	}
	fmt.Printf("integration/containers: running on %s\n", image)
	return m.Run(), nil
}

func TestPgx(t *testing.T) {
	t.Parallel()
	for _, mode := range conformance.PgxModes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, conformance.Pgx(mode))
		})
	}
}

func TestDatabaseSQL(t *testing.T) {
	t.Parallel()
	pool := func(t *testing.T, db *pgtest.DB) *sql.DB {
		t.Helper()
		return db.SQL(t)
	}
	conformance.Run(t, conformance.SQL(pool, conformance.Std))
}
