package statemachine

import (
	"iter"
	"slices"
	"strings"
	"time"
)

// edge is one event in one state where it means something. Everything that shows a machine or writes it
// down for the database reads it from here.
type edge[S StateType] struct {
	from, to S
	event    Event[S]
	ignored  bool          // nothing happens; to is from
	reversal string        // why a final state is left
	after    time.Duration // when Sweep fires it, or 0
	columns  []string      // that the call has to set
}

// note is what a diagram says of an edge, beside the event's name.
func (e edge[S]) note() string {
	var notes []string
	if e.ignored {
		notes = append(notes, "ignored")
	}
	if e.after > 0 {
		notes = append(notes, "after "+e.after.String())
	}
	if e.reversal != "" {
		notes = append(notes, "reversal: "+e.reversal)
	}
	return strings.Join(notes, "; ")
}

// edges are in the order of the states and then of the events, as the rules first mention them.
func (m *Machine[S]) edges() iter.Seq[edge[S]] {
	return func(yield func(edge[S]) bool) {
		for _, from := range m.states {
			for _, ev := range m.Events() {
				e, ok := m.edge(from, ev)
				if ok && !yield(e) {
					return
				}
			}
		}
	}
}

// edge is what an event does in a state; ok is false where that is a conflict.
func (m *Machine[S]) edge(from S, ev Event[S]) (e edge[S], ok bool) {
	mv := m.events[ev.name]
	if mv == nil {
		return e, false
	}
	if i := slices.Index(mv.sources, from); i >= 0 {
		return mv.edges[i], true
	}
	return edge[S]{from: from, to: from, event: ev, ignored: true}, slices.Contains(mv.ignored, from)
}

// Events lists all events, in the order in which the rules mention them.
func (m *Machine[S]) Events() []Event[S] {
	out := make([]Event[S], len(m.order))
	for i, name := range m.order {
		out[i] = Event[S]{name}
	}
	return out
}

// Initial lists the states that rows are created in.
func (m *Machine[S]) Initial() []S { return slices.Clone(m.initial) }

// Ignores reports whether ev does nothing in a state, by declaration.
func (m *Machine[S]) Ignores(s S, ev Event[S]) bool {
	mv := m.events[ev.name]
	return mv != nil && slices.Contains(mv.ignored, s)
}
