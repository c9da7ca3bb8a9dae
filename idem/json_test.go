package idem

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestJSONIgnoresHowItIsWritten(t *testing.T) {
	t.Parallel()
	want := JSON([]byte(`{"amount":1250,"to":"ü","lines":[1,0.5,1e3,true,null,""]}`))
	for _, doc := range []string{
		" {\n\t\"to\" : \"\\u00fc\", \"lines\":[1.0,5e-1,1000,true,null,\"\"] ,\"amount\":1250.00}\r\n",
		`{"lines":[1,0.50,1E+3,true,null,""],"amount":12.5e2,"to":"ü"}`,
	} {
		got := JSON([]byte(doc))
		if same, known := got.matches(want.version, want.sum); got.check() != nil || !same || !known {
			t.Errorf("%s: %+v", doc, got)
		}
	}
	for _, doc := range []string{
		`{"amount":1250,"to":"ü","lines":[1,0.5,1e3,true,null]}`, `{"amount":1251,"to":"ü","lines":[1,0.5,1e3,true,null,""]}`,
		`{"amount":"1250","to":"ü","lines":[1,0.5,1e3,true,null,""]}`, `{"amount":1250,"to":"u","lines":[1,0.5,1e3,true,null,""]}`,
		`{"amount":1250,"to":"ü","lines":[0.5,1,1e3,true,null,""]}`, `{"amount":1250,"to":"ü","extra":null,"lines":[1,0.5,1e3,true,null,""]}`,
	} {
		got := JSON([]byte(doc))
		if same, _ := got.matches(want.version, want.sum); got.check() != nil || same {
			t.Errorf("%s: taken for the same (%v)", doc, got.check())
		}
	}
}

// A document that two readers could take for two things is no fingerprint.
func TestJSONRefuses(t *testing.T) {
	t.Parallel()
	for doc, says := range map[string]string{
		`{"a":1,"a":2}`:                        "Duplicate key",
		`{"a":{"b":1,"c":2,"\u0062":1}}`:       "Duplicate key",
		`[{"a":1},{"a":1,"b":[],"a":1}]`:       "Duplicate key",
		`9007199254740993`:                     "send it as a string",
		`{"cents":9007199254740994}`:           "send it as a string",
		`-9007199254740994`:                    "send it as a string",
		`9007199254740994.0`:                   "send it as a string",
		`123456789012345.678`:                  "send it as a string",
		`0.1000000000000000055511151231257827`: "send it as a string",
		`1e-400`:                               "send it as a string",
		`1e400`:                                "",
		``:                                     "",
		`{`:                                    "",
		`{"a":1}{"b":2}`:                       "",
		`{"a":1,}`:                             "",
		`01`:                                   "",
		"\"\xff\"":                             "UTF-8",
		`"\ud800"`:                             "",
		strings.Repeat("[", 200_000):           "",
	} {
		err := JSON([]byte(doc)).check()
		e, ok := errors.AsType[*KeyError](err)
		if !ok || e.Part != "fingerprint" || !strings.Contains(e.Reason, says) {
			t.Errorf("%.40s: got %v, want it to say %q", doc, err, says)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("%.40s: an error of %d bytes", doc, len(err.Error()))
		}
	}
	for _, doc := range []string{`9007199254740992`, `-9007199254740992`, `0.1`, `-0.0`, `0`, `12.50`, `100e-2`, `0.30000000000000004`} {
		if err := JSON([]byte(doc)).check(); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
	}
	if JSON(nil).check() == nil {
		t.Error("nil is not a document")
	}
}

// Whatever gets a fingerprint is JSON, and means the same after encoding/json has read and
// written it.
func FuzzJSON(f *testing.F) {
	for _, doc := range []string{`{"a":[1,2.5,"x"],"b":null}`, `0.1`, `"\u00fc\ud83d\ude00"`, `[[],{}]`, `1e-7`, `-0`} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		print := JSON(doc)
		if print.check() != nil {
			return
		}
		d := json.NewDecoder(bytes.NewReader(doc))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%q has a fingerprint and is no JSON: %v", doc, err)
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		other := JSON(again)
		if same, _ := other.matches(print.version, print.sum); other.check() != nil || !same {
			t.Fatalf("%q and %q have two fingerprints (%v)", doc, again, other.check())
		}
	})
}
