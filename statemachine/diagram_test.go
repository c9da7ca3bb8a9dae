package statemachine_test

import (
	"strings"
	"testing"
	"time"

	sm "github.com/pgonce/pgonce/statemachine"
)

// A machine with everything that a diagram has to show.
var shown = sm.MustNew("shown", sm.Initial[light]("new", "not paid"), sm.Final[light]("gone"),
	from("new").On(on).To("open"), from("new", "not paid").On(off).To("gone"), from("open").On(dim).To("open"),
	from("open").After(15*time.Minute).On(off).To("gone"), from("gone").Ignore(on, dim), from("gone").On(fail).To("open").Reversal("too late"))

func TestDiagrams(t *testing.T) {
	t.Parallel()
	for what, d := range map[string][2]string{
		"Mermaid": {shown.Mermaid(), `stateDiagram-v2
    state "new" as s0
    state "not#32;paid" as s1
    state "gone" as s2
    state "open" as s3
    [*] --> s0
    [*] --> s1
    s0 --> s3 : on
    s0 --> s2 : off
    s1 --> s2 : off
    s2 --> s2 : on (ignored)
    s2 --> s2 : dim (ignored)
    s2 --> s3 : fail (reversal#58;#32;too#32;late)
    s3 --> s2 : off (after#32;15m0s)
    s3 --> s3 : dim
    s2 --> [*]
`},
		"DOT": {shown.DOT(), `digraph "shown" {
    rankdir=LR
    node [shape=box, style=rounded]
    s0 [label="new"]
    s1 [label="not paid"]
    s2 [label="gone", peripheries=2]
    s3 [label="open"]
    i0 [shape=point]
    i0 -> s0
    i1 [shape=point]
    i1 -> s1
    s0 -> s3 [label="on"]
    s0 -> s2 [label="off"]
    s1 -> s2 [label="off"]
    s2 -> s2 [label="on (ignored)", style=dashed]
    s2 -> s2 [label="dim (ignored)", style=dashed]
    s2 -> s3 [label="fail (reversal: too late)", style=bold]
    s3 -> s2 [label="off (after 15m0s)", style=dotted]
    s3 -> s3 [label="dim"]
}
`},
		"Markdown": {shown.Markdown(), `| | state | event | leads to | |
|---|---|---|---|---|
| initial | new | on | open |  |
| initial | new | off | gone |  |
| initial | not paid | off | gone |  |
| final | gone | on | *ignored* |  |
| final | gone | dim | *ignored* |  |
| final | gone | fail | open | reversal&#58;&#32;too late |
|  | open | off | gone | after 15m0s |
|  | open | dim | open |  |
`},
	} {
		if d[0] != d[1] {
			t.Errorf("%s is\n%s\nwant\n%s", what, d[0], d[1])
		}
	}
	if got := sm.MustNew("one", sm.Initial[light]("a"), sm.Final[light]("a")).Markdown(); !strings.Contains(got, "| initial, final | a | | | |") {
		t.Errorf("a state without an event is not shown:\n%s", got)
	}
}

// Whatever names contain, a diagram has as many lines as the same one with tame names, and no sign of theirs
// that means something to who draws it.
// flagged is a state of a table that has always had numbers.
type flagged int16

func (f flagged) String() string { return map[flagged]string{1: "new", 2: "paid \"in full\""}[f] }

func TestDiagramsNameNumbers(t *testing.T) {
	t.Parallel()
	m := sm.MustNew("flagged", sm.Initial(flagged(1)), sm.Final(flagged(2)),
		sm.From(flagged(1)).On(sm.NewEvent[flagged]("pay")).To(flagged(2)))
	for text, want := range map[string]string{
		m.Mermaid():  `state "2#32;paid#32;#34;in#32;full#34;" as s1`,
		m.DOT():      `s1 [label="2 paid \"in full\"", peripheries=2]`,
		m.Markdown(): `| initial | 1 new | pay | 2 paid&#32;&#34;in full&#34; |`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s lacks %s", text, want)
		}
	}
}

func TestDiagramsEscapeHostileNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		`a"; evil`, `a -> b`, `</script><img src=x onerror=alert(1)>`, "|x|`y`|", `[*]`, `end note`, "s0 --> s1 : x", `\`, `\"`, `\N\G`, `"`, "#", "#35;", "&lt;",
		"a: b", "%%{init: {}}%%", "*bold* _it_ ~~no~~", "[link](http://x)", " ", "  two  ", "\u2028line\u2029", "\u202egnitrevni", "direction LR", "ключ", "état", "🙂",
	} {
		ev := sm.NewEvent[light](name)
		machine := func(s light, name string) *sm.Machine[light] {
			return sm.MustNew(name, sm.Initial(s), sm.Final[light]("z"), from(s).On(ev).To("z"), from("z").On(off).To(s).Reversal(name))
		}
		m, plain := machine(light(name), name), machine("a", "m")
		for what, d := range map[string][2]string{"Mermaid": {m.Mermaid(), plain.Mermaid()}, "DOT": {m.DOT(), plain.DOT()}, "Markdown": {m.Markdown(), plain.Markdown()}} {
			if strings.Count(d[0], "\n") != strings.Count(d[1], "\n") {
				t.Errorf("%s of %q has other lines:\n%s", what, name, d[0])
			}
		}
		for i, line := range strings.Split(strings.TrimSpace(m.Mermaid()), "\n") {
			_, label, _ := strings.Cut(line, `state "`)
			if _, after, ok := strings.Cut(line, " : "); ok {
				label = strings.Replace(after, " (", "(", 1) // ours
			}
			label, _, _ = strings.Cut(label, `" as `)
			if i > 0 && strings.ContainsAny(label, " \"<>[]{}%`|*\u2028\u2029\u202e") {
				t.Errorf("Mermaid of %q: %s", name, line)
			}
		}
		for _, line := range strings.Split(strings.TrimSpace(m.Markdown()), "\n")[2:] {
			if cells := strings.Count(line, "|"); cells != 6 || strings.ContainsAny(line, "`<>[]*~\\") {
				t.Errorf("Markdown of %q: %s", name, line)
			}
		}
		for _, line := range strings.Split(m.DOT(), "\n") {
			if quotes := strings.Count(strings.ReplaceAll(strings.ReplaceAll(line, `\\`, ""), `\"`, ""), `"`); quotes%2 != 0 || quotes > 2 {
				t.Errorf("DOT of %q: %s", name, line)
			}
		}
	}
}

func TestMachineListsWhatItHas(t *testing.T) {
	t.Parallel()
	if got := shown.Events(); len(got) != 4 || got[0] != on || got[1] != off || got[2] != dim || got[3] != fail {
		t.Errorf("events %v", got)
	}
	if got := shown.Initial(); len(got) != 2 || got[0] != "new" || got[1] != "not paid" {
		t.Errorf("initial %v", got)
	}
	if !shown.Ignores("gone", on) || shown.Ignores("new", on) || shown.Ignores("gone", fail) {
		t.Error("ignored events are wrong")
	}
}
