package statemachine

import (
	"encoding/json"
	"errors"

	"github.com/pgonce/pgonce/internal/pg"
)

// explainTrigger tells a refusal of our trigger from that of a constraint of the table's own, which is
// the user's business. The trigger's name and the JSON in the detail make it ours; the message is translated by nobody, but
// another trigger may have the same.
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
	if json.Unmarshal([]byte(e.Detail), &detail) != nil {
		return err
	}
	return &TriggerError{
		Machine: detail.Machine, ID: f.id, Event: f.event.name, From: detail.From, To: detail.To, New: detail.New, Table: e.Table, Err: err,
	}
}
