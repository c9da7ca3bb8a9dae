package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/internal/localpg"
)

// leftBehind is S5.
func leftBehind() target {
	return target{"S5", "what a new key with a result of 512 bytes leaves behind, beyond the business write", measureLeftBehind}
}

const (
	sqlWAL  = `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`
	sqlXIDs = `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`
	// sqlGarbage is what vacuum would have to do for us.
	sqlGarbage = `SELECT n_tup_ins, n_tup_upd + n_tup_del + n_dead_tup FROM pg_stat_user_tables WHERE relname = 'idem_record'`
)

// quietServer writes no WAL but ours, and no images of pages: those come once a page and checkpoint.
func quietServer() (*localpg.Server, error) {
	return localpg.Start(&localpg.Config{Settings: map[string]string{
		"autovacuum": "off", "wal_level": "minimal", "max_wal_senders": "0", "full_page_writes": "off", "checkpoint_timeout": "1h",
	}})
}

func measureLeftBehind(ctx context.Context, g *ground) error {
	server, err := quietServer()
	if err != nil {
		return err
	}
	return errors.Join(g.leftBehind(ctx, server.URL("postgres")), server.Stop())
}

func (g *ground) leftBehind(ctx context.Context, url string) error {
	count := int64(2000)
	if g.opt.smoke {
		count = 200
	}
	hidden, err := newKeys(ctx, url, 1, &idem.Config{HideIDs: true})
	if err != nil {
		return err
	}
	defer hidden.pool.Close()
	open, err := idem.New(pgxdriver.New(hidden.pool), nil)
	if err != nil {
		return err
	}
	inClear := &keys{Store: open, pool: hidden.pool}
	note := strings.Repeat("x", 512-len(`{"RefundID":1000,"Note":""}`))
	var ids requests
	ids.last.Store(1_000_000)
	if err := errors.Join(hidden.do(ctx, ids.next(), note), inClear.do(ctx, ids.next(), note), hidden.bare(ctx, ids.next())); err != nil {
		return err // the first ones prepare
	}
	bare, err1 := hidden.leaves(ctx, count, func() error { return hidden.bare(ctx, ids.next()) })
	new1, err2 := hidden.leaves(ctx, count, func() error { return hidden.do(ctx, ids.next(), note) })
	new2, err3 := hidden.leaves(ctx, count, func() error { return inClear.do(ctx, ids.next(), note) })
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	garbage, err := hidden.garbage(ctx, 2*count)
	if err != nil {
		return err
	}
	g.judgeLeftBehind(count, bare, new1, new2, garbage)
	return nil
}

func (g *ground) judgeLeftBehind(count int64, bare, hidden, inClear left, garbage float64) {
	g.report.printf("| %d keys | WAL, bytes each | beyond the write | commits each | dead tuples |\n|---|---:|---:|---:|---:|\n", count)
	for _, row := range []struct {
		name string
		left
		dead string
	}{{bareTransaction, bare, ""}, {"pgonce, id hidden", hidden, grouped(garbage)}, {"pgonce, id in clear", inClear, grouped(garbage)}} {
		g.report.printf("| %s | %.0f | %.0f | %.2f | %s |\n", row.name, row.wal, row.wal-bare.wal, row.commits, row.dead)
	}
	g.report.printf("\n")
	g.report.atMost("id=hidden", "wal", hidden.wal-bare.wal, 800)
	g.report.atMost("id=clear", "wal", inClear.wal-bare.wal, 830)
	g.report.atMost("id=clear", "commits", inClear.commits, 1)
	g.report.atMost("id=clear", "dead", garbage, 0)
}

// left is what one of many operations leaves behind.
type left struct{ wal, commits float64 }

func (k *keys) leaves(ctx context.Context, count int64, op func() error) (l left, err error) {
	read := func() (wal, xids int64, err error) {
		err1, err2 := k.pool.QueryRow(ctx, sqlWAL).Scan(&wal), k.pool.QueryRow(ctx, sqlXIDs).Scan(&xids)
		return wal, xids, errors.Join(err1, err2)
	}
	wal, xids, err := read()
	for range count {
		err = errors.Join(err, op())
	}
	wal2, xids2, err2 := read()
	return left{float64(wal2-wal) / float64(count), float64(xids2-xids) / float64(count)}, errors.Join(err, err2)
}

// garbage is read when the statistics have come in: a backend reports its last figures when it ends.
func (k *keys) garbage(ctx context.Context, rows int64) (float64, error) {
	k.pool.Reset()
	for began := time.Now(); time.Since(began) < time.Minute; <-time.After(10 * time.Millisecond) {
		var inserted, dead int64
		if err := k.pool.QueryRow(ctx, sqlGarbage).Scan(&inserted, &dead); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return 0, err
		}
		if inserted >= rows {
			return float64(dead), nil
		}
	}
	return 0, fmt.Errorf("the server's statistics do not show %d rows", rows)
}
