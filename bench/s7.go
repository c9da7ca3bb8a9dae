package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/idem"
)

// steps is S7.
func steps() target {
	return target{"S7", "`idem.RunSteps` with one step, beside the same statements with a commit each", measureSteps}
}

const (
	plainSteps      = "the same statements by hand"
	batchedSteps    = "the same by hand, 128 keys a commit"
	stepConnections = 32
	stepsTogether   = 128 // keys in one commit of RunSteps, at most
)

// The statements of RunSteps: a key is claimed, its step is stored, the record takes the place of both.
const (
	sqlPlainClaim = `
INSERT INTO pgonce.idem_lease (nonce, worker, created_at, not_before, attempts, state, fp_ver, scope, digest, op, id, fp, request)
SELECT $2::bigint, $3::bigint, statement_timestamp(), statement_timestamp() + make_interval(secs => $4::float8), 0, 1,
       $5::smallint, $6::text, $7::bytea, $8::text, $9::text, $10::bytea, $11::bytea
WHERE NOT EXISTS (SELECT FROM pgonce.idem_record r WHERE r.scope = $6::text AND r.digest = $7::bytea)
  AND pg_try_advisory_xact_lock($1::bigint)
ON CONFLICT (scope, digest) DO NOTHING
RETURNING created_at`
	sqlPlainLookup = `
SELECT attempt, state, fp_ver, fp, created_at, replay_until > statement_timestamp(), result
FROM pgonce.idem_record WHERE scope = $1::text AND digest = $2::bytea`
	sqlPlainStore = `
WITH mine AS (
    SELECT l.nonce FROM pgonce.idem_lease l WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint FOR NO KEY UPDATE)
INSERT INTO pgonce.idem_step (at, ord, round, state, scope, digest, name, result)
SELECT statement_timestamp(), 0, 0, 2, $1::text, $2::bytea, $4::text, $5::bytea FROM mine
ON CONFLICT (scope, digest, ord) DO UPDATE SET at = EXCLUDED.at, round = EXCLUDED.round, state = EXCLUDED.state, result = EXCLUDED.result`
	sqlPlainFinish = `
WITH gone AS (
    DELETE FROM pgonce.idem_lease l WHERE l.scope = $1::text AND l.digest = $2::bytea AND l.nonce = $3::bigint
    RETURNING l.created_at, l.fp_ver, l.scope, l.digest, l.op, l.id, l.fp), steps AS (
    DELETE FROM pgonce.idem_step s WHERE s.scope = $1::text AND s.digest = $2::bytea AND EXISTS (SELECT FROM gone))
INSERT INTO pgonce.idem_record (attempt, created_at, replay_until, remember_until, state, fp_ver, scope, digest, op, id, fp, result)
SELECT $3::bigint, created_at, statement_timestamp() + make_interval(secs => $4::float8), statement_timestamp() + make_interval(secs => $5::float8),
       1, fp_ver, scope, digest, op, id, fp, $6::bytea
FROM gone`
)

func measureSteps(ctx context.Context, g *ground) error {
	k, err := newKeys(ctx, g.postgres.url, stepConnections, nil)
	if err != nil {
		return err
	}
	defer k.pool.Close()
	ids := &requests{}
	for _, workers := range []int{1, 256} {
		if err := g.stepsAt(ctx, k, workers, ids); err != nil {
			return err
		}
	}
	return nil
}

func (g *ground) stepsAt(ctx context.Context, k *keys, workers int, ids *requests) error {
	contenders := []contender{
		repeated(us, workers, false, func(ctx context.Context) error { return k.steps(ctx, ids.next()) }),
		repeated(plainSteps, workers, false, func(ctx context.Context) error { return k.plainSteps(ctx, ids.next()) }),
	}
	if workers > 1 {
		contenders = append(contenders, contender{name: batchedSteps, run: func(ctx context.Context, d time.Duration) (sample, error) {
			s, err := hammer(ctx, 2, d, func(ctx context.Context, _ int) (time.Duration, error) { return 0, k.together(ctx, ids) })
			for i := range s.served {
				s.served[i] *= stepsTogether
			}
			return s, err
		}})
	}
	row := fmt.Sprintf("c=%d", workers)
	found, err := g.alternate(ctx, "S7 "+row, contenders)
	if err != nil {
		return err
	}
	g.report.compare(row, "keys/s", contenders, found)
	if workers > 1 {
		g.report.atLeast(row+" vs=plain", "ratio", found[us].over(found[plainSteps], (*sample).rate), 2.5)
	}
	return nil
}

var remittances = idem.Op{Name: "remittance.send"}

// steps executes a key with one foreign call, which is answered at once.
func (k *keys) steps(ctx context.Context, id string) error {
	res, err := idem.RunSteps(ctx, k.Store, remittances.Key("merchant-1", id), idem.Bytes([]byte(id)), id,
		func(ctx context.Context, run *idem.Run[pgx.Tx], id string) (receipt, error) {
			return idem.Step(ctx, run, "bank", func(context.Context, string) (receipt, error) { return receipt{RefundID: int64(len(id))}, nil })
		})
	if err == nil && res.Replayed {
		err = fmt.Errorf("%s was not new", id)
	}
	return err
}

// plainSteps does what has to be done on the server for that, and nothing else: 4 trips, 3 commits.
func (k *keys) plainSteps(ctx context.Context, id string) error {
	conn, err := k.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	p := newPlainKey(id)
	if err := inOneCommit(ctx, conn, p.claim); err != nil {
		return err
	}
	_, err1 := conn.Exec(ctx, sqlPlainStore, p.store()...)
	_, err2 := conn.Exec(ctx, sqlPlainFinish, p.finish()...)
	return errors.Join(err1, err2)
}

// together is the same with as many keys in each commit as RunSteps would put there at most: what coalescing can make of these
// statements if all else costs nothing.
func (k *keys) together(ctx context.Context, ids *requests) error {
	conn, err := k.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	all := make([]plainKey, stepsTogether)
	for i := range all {
		all[i] = newPlainKey(ids.next())
	}
	for _, stage := range []func(*plainKey, *pgx.Batch){
		(*plainKey).claim,
		func(p *plainKey, b *pgx.Batch) { b.Queue(sqlPlainStore, p.store()...) },
		func(p *plainKey, b *pgx.Batch) { b.Queue(sqlPlainFinish, p.finish()...) },
	} {
		err = inOneCommit(ctx, conn, func(b *pgx.Batch) {
			for i := range all {
				stage(&all[i], b)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// inOneCommit is two trips: the statements with BEGIN, and COMMIT.
func inOneCommit(ctx context.Context, conn *pgxpool.Conn, queue func(*pgx.Batch)) error {
	var b pgx.Batch
	b.BeginTx(pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	queue(&b)
	br := conn.SendBatch(ctx, &b)
	if err := br.Close(); err != nil {
		return err
	}
	return br.Tx().Commit(ctx)
}

// plainKey is a key that is executed by hand.
type plainKey struct {
	id             string
	nonce          int64
	digest, answer []byte
}

const plainScope = "merchant-1"

func newPlainKey(id string) plainKey {
	return plainKey{id, rand.Int64(), []byte("plain-" + id[len(id)-10:]), []byte(`{"RefundID":48,"Note":""}`)}
}

// claim fails the batch for a key that is not new.
func (p *plainKey) claim(b *pgx.Batch) {
	b.Queue(sqlPlainClaim, p.nonce, p.nonce, int64(1), 1.0, int64(2), plainScope, p.digest, "remittance.plain", p.id, p.digest, []byte(p.id)).
		QueryRow(func(row pgx.Row) error {
			var at time.Time
			return row.Scan(&at)
		})
	b.Queue(sqlPlainLookup, plainScope, p.digest).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			return fmt.Errorf("%s was not new", p.id)
		}
		return rows.Err()
	})
}

func (p *plainKey) store() []any { return []any{plainScope, p.digest, p.nonce, "bank", p.answer} }

func (p *plainKey) finish() []any {
	const day = float64(24 * time.Hour / time.Second)
	return []any{plainScope, p.digest, p.nonce, day, 30 * day, p.answer}
}
