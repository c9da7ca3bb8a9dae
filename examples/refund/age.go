package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// age makes every stored instant older by d: of the shop, of its queue, of the wrong ways, and of
// the library for these merchants. The database's clock decides everything here, so this is what waiting
// would do. Of the library it touches nobody else's rows: making those older would forget their keys sooner.
func age(ctx context.Context, pool *pgxpool.Pool, d time.Duration, merchants []string) error {
	rows, _ := pool.Query(ctx, `
SELECT n.nspname, c.relname, array_agg(a.attname::text)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE a.atttypid = 'timestamptz'::regtype AND NOT a.attisdropped AND c.relkind = 'r'
  AND (n.nspname IN ('shop', 'shop_queue', 'wrong') OR n.nspname = 'pgonce' AND c.relname IN ('idem_record', 'transition'))
GROUP BY 1, 2 ORDER BY 1, 2`)
	type table struct {
		Schema, Name string
		Columns      []string
	}
	tables, err := pgx.CollectRows(rows, pgx.RowToStructByPos[table])
	if err != nil {
		return err
	}
	if len(tables) == 0 {
		return fmt.Errorf("nothing to make older by %v", d)
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		for _, t := range tables {
			var sets []string
			for _, column := range t.Columns {
				c := pgx.Identifier{column}.Sanitize()
				sets = append(sets, c+" = "+c+" - $1::interval")
			}
			update, args := `UPDATE `+pgx.Identifier{t.Schema, t.Name}.Sanitize()+` SET `+strings.Join(sets, ", "), []any{d}
			switch t.Name {
			case "idem_record":
				update, args = update+` WHERE scope = ANY($2)`, append(args, merchants)
			case "transition":
				update, args = update+` WHERE machine = 'refund' AND entity IN (SELECT id::text FROM shop.refund WHERE merchant = ANY($2))`, append(args, merchants)
			}
			if _, err := tx.Exec(ctx, update, args...); err != nil {
				return fmt.Errorf("make %s.%s older: %w", t.Schema, t.Name, err)
			}
		}
		return nil
	})
}
