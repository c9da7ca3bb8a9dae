package statemachine

import (
	"reflect"
	"slices"
	"strconv"
	"time"
)

// StateType is what states are made of: a type of the user's own, for a column of text or enum, or of integers.
type StateType interface {
	~string | ~int | ~int16 | ~int32 | ~int64
}

// textOf is a state as it travels and as the history keeps it.
func textOf[S StateType](s S) string {
	if v := reflect.ValueOf(s); v.Kind() != reflect.String {
		return strconv.FormatInt(v.Int(), 10)
	}
	return reflect.ValueOf(s).String()
}

// stateOf is the opposite of textOf. ok is false for a text that is none of S, as a column of another type
// may hold.
func stateOf[S StateType](text string) (s S, ok bool) {
	v := reflect.ValueOf(&s).Elem()
	if v.Kind() == reflect.String {
		v.SetString(text)
		return s, true
	}
	n, err := strconv.ParseInt(text, 10, v.Type().Bits())
	if err != nil {
		return s, false
	}
	v.SetInt(n)
	return s, true
}

// texts are states as plain strings.
func texts[S StateType](states []S) []string {
	out := make([]string, len(states))
	for i, s := range states {
		out[i] = textOf(s)
	}
	return out
}

// Event is something that moves a machine. S keeps the events of one machine from
// being fired at another: it is the type of the states, nothing of it is stored.
type Event[S StateType] struct{ name string }

// NewEvent names an event. The name is part of the history, so renaming an event makes
// another one of it. 1 to 100 bytes of valid UTF-8 without control characters; [New] reports
// one that is not.
func NewEvent[S StateType](name string) Event[S] { return Event[S]{name} }

// Name is the event's name.
func (e Event[S]) Name() string { return e.name }

// Machine is a checked definition. It is a value without state: rows have states, machines have
// rules. Safe for concurrent use.
type Machine[S StateType] struct {
	name    string
	states  []S // as they were first mentioned
	initial []S
	final   []S
	former  []S
	events  map[string]*moves[S]
	order   []string       // of the events, as they were first mentioned
	require map[S][]string // columns, by state
}

// moves is what one event does, state by state.
type moves[S StateType] struct {
	edges            []edge[S]
	sources, targets []S // of the edges, in the same order
	ignored          []S

	// idle are the targets that the event does not leave again: a row there may
	// have been put there by this event.
	idle []S

	// shared says that a row in an idle state may as well have been put there by another event, or
	// created there. So the state alone does not tell whether this event was applied.
	shared bool

	// overlap says that a target is a source too, so that a repeat would move on.
	overlap bool
}

// columns are what a call has to set, whichever edge it comes to.
func (mv *moves[S]) columns() []string {
	var out []string
	for _, e := range mv.edges {
		for _, c := range e.columns {
			if !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
	}
	return out
}

// columns are all that Require and Setting name, each once.
func (m *Machine[S]) columns() []string {
	var out []string
	for _, s := range m.states {
		out = append(out, m.require[s]...)
	}
	for _, name := range m.order {
		out = append(out, m.events[name].columns()...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Name is the machine's name.
func (m *Machine[S]) Name() string { return m.name }

// States lists all states, in the order in which the rules mention them.
func (m *Machine[S]) States() []S { return slices.Clone(m.states) }

// Next is the state that ev leads to from a state. ok is false where it is not allowed, and where it
// is ignored.
func (m *Machine[S]) Next(from S, ev Event[S]) (to S, ok bool) {
	mv := m.events[ev.name]
	if mv == nil {
		return to, false
	}
	i := slices.Index(mv.sources, from)
	if i < 0 {
		return to, false
	}
	return mv.targets[i], true
}

// Allowed lists the events that move a row in a state, in the order of the rules.
func (m *Machine[S]) Allowed(from S) []Event[S] {
	var out []Event[S]
	for _, name := range m.order {
		if slices.Contains(m.events[name].sources, from) {
			out = append(out, Event[S]{name})
		}
	}
	return out
}

// IsFinal reports whether a state was declared final.
func (m *Machine[S]) IsFinal(s S) bool { return slices.Contains(m.final, s) }

// IsFormer reports whether a state was declared a former one.
func (m *Machine[S]) IsFormer(s S) bool { return slices.Contains(m.former, s) }

// IsReversal reports whether ev leaves the state against its being final, as declared by
// [Rule.Reversal].
func (m *Machine[S]) IsReversal(from S, ev Event[S]) bool {
	e, ok := m.edge(from, ev)
	return ok && e.reversal != ""
}

// After is when [Binding.Sweep] fires ev in a state, as declared by [Source.After]; ok is false where it
// never does.
func (m *Machine[S]) After(from S, ev Event[S]) (after time.Duration, ok bool) {
	e, _ := m.edge(from, ev)
	return e.after, e.after > 0
}

// Required lists the columns that a row in a state has to have, as declared by [Require].
func (m *Machine[S]) Required(s S) []string { return slices.Clone(m.require[s]) }

// NeedsDedup reports whether ev can be fired with [Dedup] only: one of its targets is one of its
// sources too, so that a repeat without an id would be one more step.
func (m *Machine[S]) NeedsDedup(ev Event[S]) bool {
	mv := m.events[ev.name]
	return mv != nil && mv.overlap
}
