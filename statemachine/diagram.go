package statemachine

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode"
)

// Mermaid is the machine as a state diagram for Mermaid, which GitHub and GitLab draw inside of a Markdown page.
// An event that is ignored in a state leads back to it and says so; a time-out says after
// how long, and a way out of a final state why.
//
// The text is the same for the same definition, so it can be kept in a file and compared: see
// smtest.Golden. Whatever names contain, it stays part of a label.
func (m *Machine[S]) Mermaid() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n")
	for i, s := range m.states {
		fmt.Fprintf(&b, "    state \"%s\" as s%d\n", mermaidText(labelOf(s)), i)
	}
	for i, s := range m.states {
		if slices.Contains(m.initial, s) {
			fmt.Fprintf(&b, "    [*] --> s%d\n", i)
		}
	}
	for e := range m.edges() {
		label := mermaidText(e.event.name)
		if note := e.note(); note != "" {
			label += " (" + mermaidText(note) + ")"
		}
		fmt.Fprintf(&b, "    s%d --> s%d : %s\n", m.number(e.from), m.number(e.to), label)
	}
	for i, s := range m.states {
		if m.IsFinal(s) {
			fmt.Fprintf(&b, "    s%d --> [*]\n", i)
		}
	}
	return b.String()
}

// labelOf is a state for people. An integer says little, so it is followed by its name, if it has a String method.
func labelOf[S StateType](s S) string {
	text := textOf(s)
	if reflect.ValueOf(s).Kind() == reflect.String {
		return text
	}
	if named, ok := any(s).(fmt.Stringer); ok && named.String() != text {
		text += " " + named.String()
	}
	return text
}

// DOT is the machine for Graphviz. An event that is ignored in a state is a dashed edge back to it;
// final states have two borders; a time-out is
// dotted, a way out of a final state bold. The text is the same for the same definition.
func (m *Machine[S]) DOT() string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph \"%s\" {\n    rankdir=LR\n    node [shape=box, style=rounded]\n", dotText(m.name))
	for i, s := range m.states {
		final := ""
		if m.IsFinal(s) {
			final = ", peripheries=2"
		}
		fmt.Fprintf(&b, "    s%d [label=\"%s\"%s]\n", i, dotText(labelOf(s)), final)
	}
	for i, s := range m.states {
		if slices.Contains(m.initial, s) {
			fmt.Fprintf(&b, "    i%d [shape=point]\n    i%d -> s%d\n", i, i, i)
		}
	}
	for e := range m.edges() {
		label, style := dotText(e.event.name), ""
		if note := e.note(); note != "" {
			label += " (" + dotText(note) + ")"
		}
		switch {
		case e.ignored:
			style = ", style=dashed"
		case e.after > 0:
			style = ", style=dotted"
		case e.reversal != "":
			style = ", style=bold"
		}
		fmt.Fprintf(&b, "    s%d -> s%d [label=\"%s\"%s]\n", m.number(e.from), m.number(e.to), label, style)
	}
	b.WriteString("}\n")
	return b.String()
}

// Markdown is the machine as a table: one line for each event in each state where it means something,
// and one for each state that no event means anything in. The text is the same for the same definition.
func (m *Machine[S]) Markdown() string {
	var b strings.Builder
	b.WriteString("| | state | event | leads to | |\n|---|---|---|---|---|\n")
	for _, s := range m.states {
		kind, alone := m.kind(s), true
		for e := range m.edges() {
			if e.from != s {
				continue
			}
			alone = false
			to, note := markdownText(labelOf(e.to)), markdownText(e.note())
			if e.ignored {
				to, note = "*ignored*", ""
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", kind, markdownText(labelOf(s)), markdownText(e.event.name), to, note)
		}
		if alone {
			fmt.Fprintf(&b, "| %s | %s | | | |\n", kind, markdownText(labelOf(s)))
		}
	}
	return b.String()
}

// kind says what a state is besides being one.
func (m *Machine[S]) kind(s S) string {
	var kinds []string
	if slices.Contains(m.initial, s) {
		kinds = append(kinds, "initial")
	}
	if m.IsFinal(s) {
		kinds = append(kinds, "final")
	}
	return strings.Join(kinds, ", ")
}

// number is a state's place among the states.
func (m *Machine[S]) number(s S) int { return slices.Index(m.states, s) }

// mermaidText writes everything but letters, digits and what joins them as a character code, since Mermaid has no
// other way to quote. Spaces too: it takes "direction LR" for a command, in a quoted label as well.
func mermaidText(s string) string {
	return escaped(s, "_-", func(r rune) string { return fmt.Sprintf("#%d;", r) })
}

// markdownText writes signs as character references: a backslash would not do for what is none of ASCII.
func markdownText(s string) string {
	return escaped(s, " _-", func(r rune) string { return fmt.Sprintf("&#%d;", r) })
}

// escaped replaces what is neither a letter nor a digit, nor one of joins between two of them.
func escaped(s, joins string, code func(rune) string) string {
	var b strings.Builder
	runes := []rune(s)
	for i, r := range runes {
		between := strings.ContainsRune(joins, r) && i > 0 && plain(runes[i-1]) && i+1 < len(runes) && plain(runes[i+1])
		if plain(r) || between {
			b.WriteRune(r)
			continue
		}
		b.WriteString(code(r))
	}
	return b.String()
}

func plain(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// dotText is text inside of a DOT string, where Graphviz knows escapes and character references.
func dotText(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `&`, `&amp;`, `<`, `&lt;`, `>`, `&gt;`).Replace(s)
}
