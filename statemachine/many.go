package statemachine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgonce/pgonce/internal/pg"
)

// manyAtOnce is how many rows a statement of FireMany takes.
const manyAtOnce = 1000

// RowResult is what an event came to for one row of many.
type RowResult[K ID, S StateType] struct {
	ID K
	Result[S]

	// Err is the refusal, as [Binding.Fire] would have returned it, or nil.
	Err error
}

// FireMany fires an event at many rows: a thousand of them to a statement, each statement in a transaction of its own. It
// answers for each row by itself. Every row is in the answer once, in the order of ids, however often and in whatever notation it is among them; what became of
// it is an [Outcome] or an error: [ErrConflict], [ErrNotFound], [ErrGuard], [ErrUnknownState], [ErrDedupReused], or what
// the server says of this row ([ErrTriggerRefused], a constraint of the table, another trigger).
//
// The options are those of [Binding.Fire] and hold for every row; a [Dedup] id is one for each row,
// so the name of a nightly job will do. [ExpectVersion] is refused.
//
// The rows are locked in the order of their ids, so FireMany does not deadlock with itself, whatever
// the order of ids is. A row that the server refuses does not keep the others from being moved: its thousand is
// halved until it stands alone.
//
// An error beside the answers means that it has stopped: the answers are those of the transactions
// that were committed, the ids that are missing have not been fired. Errors: [ErrInvalid], [ErrBusy], [ErrRetryTx],
// [ErrReadOnly], [ErrUnknownOutcome] (of the thousand after the last answer), [ErrUnavailable], [ErrSchema].
//
// Cost: one statement, one round trip and one commit for a thousand rows; three more trips where rows need to be
// confirmed, as in Fire. Locks: the rows, FOR NO KEY UPDATE, repeats too, but for those of a Dedup id.
func (b *Binding[K, S, TX]) FireMany(ctx context.Context, ids []K, ev Event[S], opts ...Option) ([]RowResult[K, S], error) {
	m, err := b.newMany(ids, ev, opts)
	if err == nil {
		err = m.prepare(ctx, b.db.Pool())
	}
	if err != nil {
		return nil, b.publish(ev, err)
	}
	for chunk := range slices.Chunk(m.ids, manyAtOnce) {
		if err := m.outside(ctx, chunk); err != nil {
			return m.inOrder(ids), b.publish(ev, err)
		}
	}
	return m.inOrder(ids), nil
}

// FireManyTx is [Binding.FireMany] in the caller's transaction, as [Binding.FireTx] is to Fire: it never commits,
// and its answers are as provisional as the transaction is. After an error beside the answers, which are
// then none, the transaction can only be rolled back; a refusal of a row leaves it alive. What the server refuses for one row
// it refuses for all.
//
// Several of these in one transaction lock in the order in which they are called.
//
// Cost: one statement for a thousand rows, one more where rows need to be confirmed.
func (b *Binding[K, S, TX]) FireManyTx(ctx context.Context, tx TX, ids []K, ev Event[S], opts ...Option) ([]RowResult[K, S], error) {
	m, err := b.newMany(ids, ev, opts)
	if isNil(tx) {
		err = errors.Join(err, &InvalidError{"transaction", "is nil"})
	}
	if err != nil {
		return nil, b.publish(ev, err)
	}
	q := b.db.Tx(tx)
	if err := m.prepare(ctx, q); err != nil {
		return nil, b.publish(ev, lostInTx(ctx, err))
	}
	for chunk := range slices.Chunk(m.ids, manyAtOnce) {
		answers, err := m.settle(ctx, q, chunk, 0)
		if err != nil {
			return nil, b.publish(ev, lostInTx(ctx, m.f.explain(err)))
		}
		m.keep(chunk, answers)
	}
	return m.inOrder(ids), nil
}

// many is an event on its way to many rows.
type many[K ID, S StateType, TX any] struct {
	f       *firing[K, S, TX]
	ids     []K // each once, in the order in which rows are locked
	results map[K]RowResult[K, S]
}

func (b *Binding[K, S, TX]) newMany(ids []K, ev Event[S], opts []Option) (*many[K, S, TX], error) {
	f, err := b.newFiring(*new(K), ev, opts)
	f.many = true
	m := &many[K, S, TX]{f: f, ids: slices.Clone(ids), results: make(map[K]RowResult[K, S], len(ids))}
	if f.call.version != nil {
		err = errors.Join(err, &InvalidError{"ExpectVersion", "is for one row"})
	}
	for _, id := range ids {
		if reason := b.faultOfID(idArg(id)); reason != "" {
			err = errors.Join(err, &InvalidError{fmt.Sprintf("id %q", pg.Printable(fmt.Sprint(id))), reason})
			break
		}
	}
	slices.SortFunc(m.ids, compareIDs)
	m.ids = slices.Compact(m.ids)
	return m, err
}

// prepare finds the statement, and ids that the server would refuse with all the others. UUIDs have several notations: they are put in the
// order in which the server locks them, each once, since it sees no more than a thousand at a time.
func (m *many[K, S, TX]) prepare(ctx context.Context, q pg.Querier) error {
	if err := m.f.prepare(ctx, q, false); err != nil || m.f.b.kind != idText || !m.f.uuid {
		return err
	}
	for _, id := range m.ids {
		if reason := faultOfUUID(idArg(id).(string)); reason != "" {
			return &InvalidError{fmt.Sprintf("id %q", pg.Printable(fmt.Sprint(id))), reason}
		}
	}
	digits := func(a, b K) int { return strings.Compare(uuidDigits(idArg(a).(string)), uuidDigits(idArg(b).(string))) }
	slices.SortStableFunc(m.ids, digits)
	m.ids = slices.CompactFunc(m.ids, func(a, b K) bool { return digits(a, b) == 0 })
	return nil
}

// compareIDs is the order in which rows are locked: that of numbers, or that of the bytes of the text.
func compareIDs[K ID](a, b K) int {
	x, ok := idArg(a).(int64)
	if !ok {
		return strings.Compare(idArg(a).(string), idArg(b).(string))
	}
	y := idArg(b).(int64)
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// outside fires at a chunk in transactions of our own: by one statement, and by a transaction for the rows
// that it could not settle. What the statement has settled is committed by then, so it is kept at once.
func (m *many[K, S, TX]) outside(ctx context.Context, chunk []K) error {
	var open []K
	err := m.halving(ctx, chunk, m.single, func(ids []K, answers []answer) {
		open = append(open, m.keepSettled(ids, answers)...)
	})
	if err != nil || len(open) == 0 {
		return err
	}
	return m.halving(ctx, open, m.confirmed, m.keep)
}

// halving makes an attempt at a chunk, and at its halves if one of its rows is refused by the server.
func (m *many[K, S, TX]) halving(ctx context.Context, chunk []K, attempt func(context.Context, []K) ([]answer, error), keep func([]K, []answer)) error {
	var answers []answer
	err := m.f.b.retry(ctx, m.f, func() (err error) {
		answers, err = attempt(ctx, chunk)
		return err
	})
	switch {
	case err == nil:
		keep(chunk, answers)
		return nil
	case !ofOneRow(err):
		return err
	case len(chunk) == 1:
		m.refuse(chunk[0], ofRow(chunk[0], err))
		return nil
	}
	half := len(chunk) / 2
	if err := m.halving(ctx, chunk[:half], attempt, keep); err != nil {
		return err
	}
	return m.halving(ctx, chunk[half:], attempt, keep)
}

// single is one statement outside of transactions.
func (m *many[K, S, TX]) single(ctx context.Context, chunk []K) ([]answer, error) {
	answers, err := m.run(ctx, m.f.b.db.Pool(), chunk, waitOf(ctx), false)
	if err != nil {
		return nil, lostOutside(ctx, err)
	}
	return answers, nil
}

// confirmed is a transaction of our own.
func (m *many[K, S, TX]) confirmed(ctx context.Context, chunk []K) ([]answer, error) {
	tx, err := m.f.b.db.Begin(ctx, pg.ReadCommitted)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback(ctx)
	answers, err := m.settle(ctx, tx, chunk, waitOf(ctx))
	if err != nil {
		return nil, lostInTx(ctx, err)
	}
	return answers, tx.Commit(ctx)
}

// settle runs the statement in a transaction, and once more for those rows that the first could not settle. See
// firing.confirm for why the second can.
func (m *many[K, S, TX]) settle(ctx context.Context, q pg.Querier, chunk []K, wait time.Duration) ([]answer, error) {
	answers, err := m.run(ctx, q, chunk, wait, false)
	if err != nil {
		return nil, err
	}
	var places []int
	var again []K
	for i := range answers {
		if !m.f.settled(&answers[i]) {
			places, again = append(places, i), append(again, chunk[i])
		}
	}
	if len(again) == 0 {
		return answers, nil
	}
	confirmed, err := m.run(ctx, q, again, wait, true)
	if err != nil {
		return nil, err
	}
	for i, place := range places {
		answers[place] = confirmed[i]
	}
	return answers, nil
}

// The rows that sqlMany returns.
const (
	rowPlan    = 1
	rowWritten = 2
	rowKnown   = 3
	rowTwin    = 5
)

// waitsOfMany is how many network deadlines a statement on many rows has: it may wait for several of them in turn.
const waitsOfMany = 4

// run is one statement. The answer at place i is that of chunk[i].
func (m *many[K, S, TX]) run(ctx context.Context, q pg.Querier, chunk []K, wait time.Duration, held bool) ([]answer, error) {
	limit := m.f.call.waitFor(wait)
	p := m.f.partsOf(limit > 0, wait > 0, held, false)
	s, err := m.f.statement(p)
	if err != nil {
		return nil, err
	}
	args := append(s.pick(m.f.args(idArray(chunk), limit)), m.f.call.args(m.f.b.scope)...)
	answers := make([]answer, len(chunk))
	byEntity := make(map[string]*answer, len(chunk))
	if p.alone {
		for i, id := range chunk {
			byEntity[fmt.Sprint(idArg(id))] = &answers[i]
		}
	}
	patient := pg.WithNetTimeout(ctx, waitsOfMany*pg.NetTimeout(ctx)) // who gives up does not know what becomes of the chunk
	for scan, err := range q.Query(patient, s.sql, args...) {
		var kind int64
		var place, rows *int64
		var entity *string
		var a answer
		if err == nil {
			err = scan(&kind, &place, &rows, &entity, &a.from, &a.to, &a.outcome, &a.version, &a.seq, &a.at, &a.first)
		}
		if err != nil {
			return nil, err
		}
		a.rows, a.locked = value(rows), rows != nil
		switch kind {
		case rowPlan:
			answers[*place-1] = a
			byEntity[*entity] = &answers[*place-1]
		case rowWritten:
			to := byEntity[*entity]
			if to == nil {
				return nil, fmt.Errorf("%w: row %s was moved, which is none of these", ErrSchema, *entity)
			}
			if p.alone {
				*to = a
			}
			to.written, to.seq, to.at = true, a.seq, a.at
		case rowKnown:
			answers[*place-1] = a
		case rowTwin:
			answers[*place-1].twin = true
		}
	}
	return answers, nil
}

// keepSettled is keep for answers that may have to be confirmed: it returns the ids of those.
func (m *many[K, S, TX]) keepSettled(chunk []K, answers []answer) (open []K) {
	for i, id := range chunk {
		if m.f.settled(&answers[i]) {
			m.keep(chunk[i:i+1], answers[i:i+1])
		} else {
			open = append(open, id)
		}
	}
	return open
}

// keep turns the answers of a chunk into results.
func (m *many[K, S, TX]) keep(chunk []K, answers []answer) {
	for i, id := range chunk {
		if answers[i].twin {
			continue
		}
		m.f.id = id
		res, err := m.f.result(answers[i])
		if err != nil {
			m.refuse(id, err)
			continue
		}
		m.results[id] = RowResult[K, S]{ID: id, Result: res}
	}
}

func (m *many[K, S, TX]) refuse(id K, err error) {
	m.results[id] = RowResult[K, S]{ID: id, Err: m.f.b.publish(m.f.event, err)}
}

// inOrder are the results in the order of the caller's ids.
func (m *many[K, S, TX]) inOrder(ids []K) []RowResult[K, S] {
	out := make([]RowResult[K, S], 0, len(m.results))
	for _, id := range ids {
		if res, ok := m.results[id]; ok {
			out = append(out, res)
			delete(m.results, id)
		}
	}
	return out
}

// idArray is an array of ids as text.
func idArray[K ID](ids []K) string {
	b := []byte{'{'}
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		switch arg := idArg(id).(type) {
		case int64:
			b = strconv.AppendInt(b, arg, 10)
		case string:
			b = append(b, '"')
			b = append(b, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(arg)...)
			b = append(b, '"')
		}
	}
	return string(append(b, '}'))
}

// ofOneRow says whether the server may have refused a statement on many rows for the sake of one: not if it
// said that it could not run at all, or not now.
func ofOneRow(err error) bool {
	code := pg.Code(err)
	if len(code) != 5 || !pg.Rejected(err) || errors.Is(err, ErrBusy) || errors.Is(err, ErrReadOnly) || errors.Is(err, ErrRetryTx) {
		return false
	}
	switch code[:2] {
	case "0A", "08", "25", "26", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "F0", "XX":
		return false
	}
	return true
}
