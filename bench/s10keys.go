package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
)

// manyKeys is the part of S10 that is about remembered keys.
func manyKeys() target {
	return target{"S10", "`idem.Do` of a new key beside many that are remembered, and in an empty table", measureManyKeys}
}

// purgeBesideLoad is the part of S10 that is about their results.
func purgeBesideLoad() target {
	return target{"S10", "`idem.Do` of a new key while results are purged, and while they are not", measurePurge}
}

const (
	fullSchema  = "pgonce_full"
	purgeSchema = "pgonce_purge"
	emptyTable  = "pgonce, empty table"
	growWorkers = 4
	loadWorkers = 8
	merchants   = 1000
)

// sqlFill writes records as Do does, of the numbers $1 to $2, over the last 30 days. A result of 512 bytes is there where $3 says so;
// it is no longer to be replayed if $4 says so. Keys are those of $5 merchants.
const sqlFill = `
INSERT INTO %s.idem_record (attempt, created_at, replay_until, remember_until, state, fp_ver, scope, digest, op, id, fp, result)
SELECT i, at, CASE WHEN $4::boolean THEN at ELSE at + interval '1 day' END, at + interval '60 days', 1, 2, 'merchant-' || i %% $5::bigint,
       decode(md5('digest' || i), 'hex'), 'refund.create', '5f1b0c2e-8d1c-4e09-9c59-' || lpad(i::text, 12, '0'), decode(md5('fp' || i), 'hex'),
       CASE WHEN $3::boolean THEN convert_to('{"RefundID":' || i || ',"Note":"' || repeat('x', 475) || '"}', 'UTF8') END
FROM generate_series($1::bigint, $2::bigint) i, LATERAL (SELECT now() - interval '30 days' * ((i * 7919) %% 1000000) / 1000000.0 AS at) t`

// size is a number of rows, less where time is short.
func (g *ground) size(full, quick, smoke int64) int64 {
	switch {
	case g.opt.smoke:
		return smoke
	case g.opt.quick:
		return quick
	}
	return full
}

// fill puts records into a schema. Its primary key is made at the end, which is faster and packs it as tightly as it can be.
func (k *keys) fill(ctx context.Context, schema string, count int64, results, over bool) error {
	began := time.Now()
	table := schema + ".idem_record"
	if _, err := k.pool.Exec(ctx, `ALTER TABLE `+table+` DROP CONSTRAINT idem_record_pkey`); err != nil {
		return err
	}
	const most = 500_000 // in one statement
	for from := int64(1); from <= count; from += most {
		fmt.Fprintf(os.Stderr, "bench: %s: %d of %d keys\n", schema, from-1, count)
		if _, err := k.pool.Exec(ctx, fmt.Sprintf(sqlFill, schema), from, min(count, from+most-1), results, over, merchants); err != nil {
			return err
		}
	}
	for _, sql := range []string{`ALTER TABLE ` + table + ` ADD CONSTRAINT idem_record_pkey PRIMARY KEY (scope, digest)`, `VACUUM ANALYZE ` + table, `CHECKPOINT`} {
		if _, err := k.pool.Exec(ctx, sql); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "bench: %s: %d keys in %v\n", schema, count, time.Since(began).Round(time.Second))
	return nil
}

func measureManyKeys(ctx context.Context, g *ground) error {
	count := g.size(10_000_000, 500_000, 2_000)
	full, err := newKeys(ctx, g.postgres.url, growWorkers, &idem.Config{Schema: fullSchema})
	if err != nil {
		return err
	}
	defer full.pool.Close()
	empty, err := newKeys(ctx, g.postgres.url, growWorkers, &idem.Config{Schema: "pgonce_empty"})
	if err != nil {
		return err
	}
	defer empty.pool.Close()
	if err := full.fill(ctx, fullSchema, count, false, true); err != nil {
		return err
	}
	full.merchants, empty.merchants = merchants, merchants
	var ids requests
	contenders := []contender{
		repeated(us, growWorkers, true, func(ctx context.Context) error { return full.do(ctx, "many-"+ids.next(), "") }),
		repeated(emptyTable, growWorkers, true, func(ctx context.Context) error { return empty.do(ctx, "many-"+ids.next(), "") }),
	}
	row := fmt.Sprintf("c=%d, %s keys", growWorkers, grouped(float64(count)))
	found, err := g.alternate(ctx, "S10 keys", contenders)
	if err != nil {
		return err
	}
	bytes, err := full.size(ctx, fullSchema)
	if err != nil {
		return err
	}
	g.report.latencies(row, contenders, found)
	g.report.printf("The table and its index take %s bytes a key, without results.\n\n", grouped(float64(bytes)/float64(count)))
	g.report.atMost(fmt.Sprintf("keys=%d vs=empty", count), "p50", found[us].over(found[emptyTable], quantile(0.5)), 1.25)
	_, err = full.pool.Exec(ctx, `DROP SCHEMA `+fullSchema+` CASCADE`)
	return err
}

func (k *keys) size(ctx context.Context, schema string) (bytes int64, err error) {
	err = k.pool.QueryRow(ctx, `SELECT pg_total_relation_size($1::text::regclass)`, schema+".idem_record").Scan(&bytes)
	return bytes, err
}

func measurePurge(ctx context.Context, g *ground) error {
	count := g.size(1_000_000, 100_000, 2_000)
	k, err := newKeys(ctx, g.postgres.url, loadWorkers+2, &idem.Config{Schema: purgeSchema})
	if err != nil {
		return err
	}
	defer k.pool.Close()
	if err := k.fill(ctx, purgeSchema, count, true, true); err != nil {
		return err
	}
	k.merchants = merchants
	var ids requests
	load := func(ctx context.Context) error { return k.do(ctx, "purge-"+ids.next(), "") }
	alone := repeated("pgonce, no purge", loadWorkers, true, load)
	beside := contender{name: us, run: func(ctx context.Context, d time.Duration) (sample, error) {
		return k.besidePurge(ctx, d, count/int64(g.opt.rounds+1), load)
	}}
	contenders := []contender{beside, alone}
	found, err := g.alternate(ctx, "S10 purge", contenders)
	if err != nil {
		return err
	}
	cleared, err := k.cleared(ctx)
	if err != nil {
		return err
	}
	g.report.latencies(fmt.Sprintf("c=%d, %s of %s results purged", loadWorkers, grouped(float64(cleared)), grouped(float64(count))), contenders, found)
	g.report.atMost(fmt.Sprintf("purge=%d vs=none", count), "p99", found[us].over(found[alone.name], quantile(0.99)), 1.5)
	return nil
}

// besidePurge measures a load while a purge goes on from where it stood, until it has dropped a number of results, or all
// are dropped, and at least for a time.
func (k *keys) besidePurge(ctx context.Context, least time.Duration, share int64, load func(context.Context) error) (sample, error) {
	before, err := k.cleared(ctx)
	if err != nil {
		return sample{}, err
	}
	pctx, stop := context.WithCancel(ctx)
	purged := make(chan error, 1)
	go func() {
		_, err := k.PurgeOnce(pctx)
		if pctx.Err() != nil && ctx.Err() == nil {
			err = nil // stopped by us
		}
		purged <- err
	}()
	var s sample
	for done := before; err == nil && (s.took < least || done < before+share); {
		var part sample
		part, err = hammer(ctx, loadWorkers, min(least, 500*time.Millisecond), func(ctx context.Context, _ int) (time.Duration, error) {
			began := time.Now()
			err := load(ctx)
			return time.Since(began), err
		})
		s.took += part.took
		s.served = append(s.served, part.served...)
		part.waits.pack()
		s.waits.add(&part.waits)
		var err2 error
		done, err2 = k.cleared(ctx)
		err = errors.Join(err, err2)
		if len(purged) > 0 {
			break // it has been through the table
		}
	}
	stop()
	return s, errors.Join(err, <-purged)
}

// cleared is how many results were dropped so far.
func (k *keys) cleared(ctx context.Context) (n int64, err error) {
	err = k.pool.QueryRow(ctx, `SELECT cleared FROM `+purgeSchema+`.idem_purge`).Scan(&n)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return n, err
}
