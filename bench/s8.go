package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/statemachine"
)

// transitions is S8.
func transitions() target {
	return target{"S8", "transitions with their history", measureTransitions}
}

// The machine goes back and forth. A repeat of closing is known by the state.
type orderState string

const (
	isOpen   orderState = "open"
	isClosed orderState = "closed"
)

var (
	closing   = statemachine.NewEvent[orderState]("close")
	reopening = statemachine.NewEvent[orderState]("reopen")
)

type orders = statemachine.Binding[int64, orderState, pgx.Tx]

const (
	firingWorkers = 32
	rowsOfWorker  = 100

	sameByHand  = "the same statement by hand"
	fourTrips   = "BEGIN, UPDATE, INSERT, COMMIT"
	leastOfMove = "UPDATE and history in one statement, without answers"
	repeat      = "a repeat"
)

func measureTransitions(ctx context.Context, g *ground) error {
	cfg, err := pgxpool.ParseConfig(g.postgres.url)
	if err != nil {
		return err
	}
	cfg.MaxConns = firingWorkers
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	contenders, err := fireContenders(ctx, pool)
	for _, workers := range []int{1, firingWorkers} {
		if err == nil {
			err = g.fire(ctx, workers, contenders)
		}
	}
	for _, measure := range []func(context.Context, *pgxpool.Pool) error{g.fireFarAway, g.fireMany, g.whatMovesCost} {
		if err == nil {
			err = measure(ctx, pool)
		}
	}
	return err
}

// newOrders makes a table of open orders and binds the machine to it. Pages have room for new versions of their rows.
func newOrders(ctx context.Context, pool *pgxpool.Pool, name string, rows int, bound statemachine.Table) (*orders, error) {
	_, err := pool.Exec(ctx, fmt.Sprintf(`CREATE TABLE %s (id bigint PRIMARY KEY, state text NOT NULL DEFAULT 'open', amount bigint NOT NULL DEFAULT 100,
		customer text NOT NULL DEFAULT 'customer 4711', since timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 50);
		INSERT INTO %s SELECT generate_series(0, %d - 1)`, name, name, rows), pgx.QueryExecModeSimpleProtocol)
	if err == nil {
		_, err = pool.Exec(ctx, `VACUUM ANALYZE `+name)
	}
	if err != nil {
		return nil, err
	}
	m, err := statemachine.New("bench "+name, statemachine.Initial(isOpen), statemachine.From(isOpen).On(closing).To(isClosed),
		statemachine.From(isClosed).On(reopening).To(isOpen))
	if err != nil {
		return nil, err
	}
	bound.Name = name
	return statemachine.Bind[int64](m, pgxdriver.New(pool), bound)
}

// step is a move of a row, which is to come to Applied.
type step func(ctx context.Context, id int64, from, to orderState, ev statemachine.Event[orderState]) error

// fireContenders have a table each, and write to one history.
func fireContenders(ctx context.Context, pool *pgxpool.Pool) (map[string]*stepper, error) {
	found := map[string]*stepper{}
	for table, name := range map[string]string{"s8_fire": us, "s8_hand": sameByHand, "s8_trips": fourTrips, "s8_least": leastOfMove, "s8_repeat": repeat} {
		b, err := newOrders(ctx, pool, table, firingWorkers*rowsOfWorker, statemachine.Table{})
		if err != nil {
			return nil, err
		}
		s := &stepper{turns: make([]int, firingWorkers)}
		switch name {
		case us:
			s.step = firing(b)
		case sameByHand:
			s.step, err = firingByHand(ctx, pool, b)
		case fourTrips:
			s.step = firingInFourTrips(pool, table)
		case leastOfMove:
			s.step = firingAtLeast(pool, table)
		case repeat:
			s.step, s.still = firingAgain(b), true
			_, err = pool.Exec(ctx, `UPDATE `+table+` SET state = 'closed'`)
		}
		if err != nil {
			return nil, err
		}
		found[name] = s
	}
	return found, nil
}

// stepper moves the rows of a table, one after the other. Each goroutine has rows of its own and remembers where it is.
type stepper struct {
	step
	turns []int
	still bool // it moves nothing
}

func (s *stepper) run(workers int) func(context.Context, time.Duration) (sample, error) {
	return func(ctx context.Context, d time.Duration) (sample, error) {
		return hammer(ctx, workers, d, func(ctx context.Context, w int) (time.Duration, error) {
			turn := s.turns[w]
			s.turns[w]++
			id := int64(w*rowsOfWorker + turn%rowsOfWorker)
			if !s.still && turn/rowsOfWorker%2 == 1 {
				return 0, s.step(ctx, id, isClosed, isOpen, reopening)
			}
			return 0, s.step(ctx, id, isOpen, isClosed, closing)
		})
	}
}

func (g *ground) fire(ctx context.Context, workers int, steppers map[string]*stepper) error {
	var contenders []contender
	for _, name := range []string{us, sameByHand, fourTrips, leastOfMove, repeat} {
		contenders = append(contenders, contender{name: name, run: steppers[name].run(workers)})
	}
	row := fmt.Sprintf("c=%d", workers)
	found, err := g.alternate(ctx, "S8 "+row, contenders)
	if err != nil {
		return err
	}
	g.report.compare(row, "moves/s", contenders, found)
	ours, rate := found[us], (*sample).rate
	g.report.atLeast(row+" vs=hand", "ratio", ours.over(found[sameByHand], rate), 0.9)
	g.report.atLeast(row+" vs=four-trips", "ratio", ours.over(found[fourTrips], rate), 1.25)
	g.report.floor(leastOfMove, found[leastOfMove], fourTrips, found[fourTrips])
	g.report.atLeast(row+" repeat vs=applied", "ratio", found[repeat].over(ours, rate), 1.8)
	return nil
}

func firing(b *orders) step {
	return func(ctx context.Context, id int64, _, _ orderState, ev statemachine.Event[orderState]) error {
		res, err := b.Fire(ctx, id, ev)
		if err == nil && !res.Applied() {
			err = fmt.Errorf("row %d: %v", id, res.Outcome)
		}
		return err
	}
}

func firingAgain(b *orders) step {
	return func(ctx context.Context, id int64, _, _ orderState, ev statemachine.Event[orderState]) error {
		res, err := b.Fire(ctx, id, ev)
		if err == nil && res.Outcome != statemachine.AlreadyApplied {
			err = fmt.Errorf("row %d: %v", id, res.Outcome)
		}
		return err
	}
}

// firingByHand sends the texts that Fire sends, with the arguments that they have, and reads all that they return.
func firingByHand(ctx context.Context, pool *pgxpool.Pool, b *orders) (step, error) {
	cfg := pool.Config()
	var last lastQuery
	cfg.ConnConfig.Tracer = &last
	watched, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer watched.Close()
	same, err := statemachine.Bind[int64](b.Machine(), pgxdriver.New(watched), b.Table())
	sent := map[string]pgx.TraceQueryStartData{}
	for _, ev := range []statemachine.Event[orderState]{closing, reopening} {
		if err == nil {
			_, err = same.Fire(ctx, 0, ev)
			sent[ev.Name()] = last.TraceQueryStartData
		}
	}
	return func(ctx context.Context, id int64, _, to orderState, ev statemachine.Event[orderState]) error {
		var version, seq *int64
		var moved, passed *string
		var at *time.Time
		q := sent[ev.Name()]
		args := append([]any{id}, q.Args[1:]...)
		err := pool.QueryRow(ctx, q.SQL, args...).Scan(&moved, &version, &seq, &at, &passed)
		if err == nil && (moved == nil || *moved != string(to)) {
			err = fmt.Errorf("row %d was not moved", id)
		}
		return err
	}, err
}

// lastQuery remembers what was sent.
type lastQuery struct{ pgx.TraceQueryStartData }

func (l *lastQuery) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	l.TraceQueryStartData = data
	return ctx
}

func (*lastQuery) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// firingInFourTrips is what is usually written: a conditional UPDATE and a row of a history, in a transaction.
func firingInFourTrips(pool *pgxpool.Pool, table string) step {
	update := `UPDATE ` + table + ` SET state = $3 WHERE id = $1 AND state = $2`
	return func(ctx context.Context, id int64, from, to orderState, ev statemachine.Event[orderState]) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, update, id, string(from), string(to))
			if err == nil && tag.RowsAffected() != 1 {
				err = fmt.Errorf("row %d was not moved", id)
			}
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `INSERT INTO pgonce.transition (machine, entity, event, from_state, to_state) VALUES ($1, $2, $3, $4, $5)`,
				"four trips", fmt.Sprint(id), ev.Name(), string(from), string(to))
			return err
		})
	}
}

// firingAtLeast is the least that moves a row and keeps the history in one statement. It cannot tell a repeat from a conflict, or either from a
// row that is not there.
func firingAtLeast(pool *pgxpool.Pool, table string) step {
	sql := `WITH moved AS (UPDATE ` + table + ` SET state = $3 WHERE id = $1 AND state = $2 RETURNING id)
		INSERT INTO pgonce.transition (machine, entity, event, from_state, to_state) SELECT 'at once', id::text, $4, $2, $3 FROM moved`
	return func(ctx context.Context, id int64, from, to orderState, ev statemachine.Event[orderState]) error {
		tag, err := pool.Exec(ctx, sql, id, string(from), string(to), ev.Name())
		if err == nil && tag.RowsAffected() != 1 {
			err = fmt.Errorf("row %d was not moved", id)
		}
		return err
	}
}

// fireFarAway measures over a network that takes a millisecond for a round trip.
func (g *ground) fireFarAway(ctx context.Context, pool *pgxpool.Pool) (err error) {
	proxy, url, err := newDelay(g.postgres.url, proxyDelay)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.close()) }()
	far, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer far.Close()
	_, err = newOrders(ctx, pool, "s8_fartrips", rowsOfWorker, statemachine.Table{})
	b, errUs := newOrders(ctx, far, "s8_far", rowsOfWorker, statemachine.Table{})
	if err = errors.Join(err, errUs); err != nil {
		return err
	}
	steppers := map[string]*stepper{
		us:        {step: firing(b), turns: make([]int, 1)},
		fourTrips: {step: firingInFourTrips(far, "s8_fartrips"), turns: make([]int, 1)},
	}
	contenders := []contender{{name: us, run: steppers[us].run(1)}, {name: fourTrips, run: steppers[fourTrips].run(1)}}
	found, err := g.alternate(ctx, "S8 trip=1ms", contenders)
	if err != nil {
		return err
	}
	g.report.compare("c=1, 1 ms a round trip", "moves/s", contenders, found)
	g.report.atLeast("trip=1ms vs=four-trips", "ratio", found[us].over(found[fourTrips], (*sample).rate), 1.25)
	return nil
}
