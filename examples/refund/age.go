package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/examples/internal/demo"
)

// age makes every stored instant older by d: of the shop, of its queue, of the wrong ways, and of
// the library for these merchants. Of the library it touches nobody else's rows: making those older would
// forget their keys sooner.
func age(ctx context.Context, pool *pgxpool.Pool, d time.Duration, merchants []string) error {
	return demo.Age(ctx, pool, d,
		demo.Aged{Schema: "shop"}, demo.Aged{Schema: "shop_queue"}, demo.Aged{Schema: "wrong"},
		demo.Aged{Schema: "pgonce", Table: "idem_record", Where: `scope = ANY($2)`, Arg: merchants},
		demo.Aged{
			Schema: "pgonce", Table: "transition",
			Where: `machine = 'refund' AND entity IN (SELECT id::text FROM shop.refund WHERE merchant = ANY($2))`, Arg: merchants,
		})
}
