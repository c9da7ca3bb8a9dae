//go:build unix

package dblock_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// An order hangs. Who has it?
func ExampleClient_Inspect() {
	pgtest.Example(``, func(ctx context.Context, pool *pgxpool.Pool) error {
		locks, err := dblock.New(ctx, pgxdriver.New(pool), &dblock.Config{Holder: "api-1/77 refund"})
		if err != nil {
			return err
		}
		order := dblock.Key{Space: "order", ID: "42"}
		lock, err := locks.Acquire(ctx, order, nil)
		if err != nil {
			return err
		}
		held, err := locks.Inspect(ctx, order, dblock.Key{Space: "order", ID: "43"})
		if err != nil {
			return err
		}
		h := held[0].Holdings[0]
		fmt.Println("held by", h.Name, "with the token we have:", h.Token == lock.Token())
		fmt.Print(masked(held.String()))
		return errors.Join(lock.Release(ctx), locks.Close(ctx))
	})
	// Output:
	// held by api-1/77 refund with the token we have: true
	// KEY | WHO | PID | WHAT | SINCE | LEFT
	// order#aa5497ca | api-1/77 refund | … | holds, token … | … | …
	// order#009c6902 | - | - | free | - | -
}

// masked hides what differs from run to run, the widths of columns included.
func masked(table string) string {
	table = regexp.MustCompile(` {2,}`).ReplaceAllString(table, " | ")
	return regexp.MustCompile(`\b\d{3,}\b|\b\d+(\.\d+)?(ms|s)\b|\| \d+ `).ReplaceAllStringFunc(table, func(s string) string {
		if s[0] == '|' {
			return "| … "
		}
		return "…"
	})
}
