package statemachine

import (
	"encoding/json"
	"errors"

	"github.com/pgonce/pgonce/internal/pg"
)

// explainTrigger tells a refusal of our trigger from that of a constraint of the table's own, which is
// the user's business. The trigger's name and the JSON in the detail make it ours; the message is translated by nobody, but
// another trigger may have the same,
// and so may that of another table, which a trigger of this one writes to.
func (f *firing[K, S, TX]) explainTrigger(err error) error {
	e, ok := errors.AsType[*pg.Error](err)
	s := f.b.sketch()
	if !ok || e.Constraint != s.moved && e.Constraint != s.created {
		return err
	}
	var detail struct {
		Machine  string
		From, To string
		New      bool
	}
	if json.Unmarshal([]byte(e.Detail), &detail) != nil || detail.Machine != f.b.m.name && e.Table != f.b.table.name {
		return err
	}
	refused := &TriggerError{
		Machine: detail.Machine, Event: f.event.name, From: detail.From, To: detail.To, New: detail.New, Table: e.Table, Err: err,
	}
	if !f.many { // of which nobody knows yet which one it is
		refused.ID = f.id
	}
	return refused
}

// ofRow adds to a refusal of many rows which one it is, once it stands alone.
func ofRow(id any, err error) error {
	if e, ok := errors.AsType[*TriggerError](err); ok {
		e.ID = id
	}
	return err
}
