package dblock

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pgonce/pgonce/internal/pg"
)

// maxHolder is the longest name of a holder, in bytes.
const maxHolder = 63

// defaultHolder is "host/pid program", of what there is to be had.
func defaultHolder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	name := fmt.Sprintf("%s/%d %s", host, os.Getpid(), filepath.Base(os.Args[0]))
	name = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || pg.Fault(string(r), utf8.UTFMax) != "" {
			return '?'
		}
		return r
	}, name)
	for len(name) > maxHolder {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return name
}

// sessionName is what a session of ours says of itself in application_name, for [Client.Inspect] in other
// processes: a prefix, a tag, the TTL in ms, and as much of the holder's name as there is room for. Frozen as a
// format: processes of two releases read each other's.
type sessionName struct {
	tag    string
	ttl    time.Duration
	holder string
}

const sessionPrefix = "pgonce:"

// sessionTag is made of the schema and of the session's liveness lock. Of all the locks that a session holds it
// so tells which one is no key's, and that no other program uses our prefix by chance.
func sessionTag(schema string, alone int64) string {
	sum := pg.HashParts("pgonce.dblock.session", schema, strconv.FormatInt(alone, 10))
	return hex.EncodeToString(sum[:4])
}

// String is at most 63 bytes of printable ASCII: the server cuts what is longer, and replaces other characters.
// So they are escaped as in a URL, and none is cut in two.
func (n sessionName) String() string {
	s := sessionPrefix + n.tag + ":" + millis(n.ttl) + ":"
	for _, r := range n.holder {
		part := string(r)
		if r < ' ' || r > '~' || r == '%' {
			part = ""
			for _, b := range []byte(string(r)) {
				part += fmt.Sprintf("%%%02X", b)
			}
		}
		if len(s)+len(part) > maxIdentifier {
			break
		}
		s += part
	}
	return s
}

// parseSessionName reads it. Anybody can call his sessions so; then it is a name like another one, without
// the tag's lock.
func parseSessionName(s string) (n sessionName, ok bool) {
	rest, ok := strings.CutPrefix(s, sessionPrefix)
	part := strings.SplitN(rest, ":", 3)
	if !ok || len(part) != 3 {
		return n, false
	}
	ttl, err := strconv.ParseInt(part[1], 10, 64)
	if err != nil || ttl < 1 || ttl > longestTTL.Milliseconds() {
		return n, false
	}
	return sessionName{tag: part[0], ttl: time.Duration(ttl) * time.Millisecond, holder: unescape(part[2])}, true
}

// unescape undoes the escapes. What is none, or cannot be shown, stays as it is.
func unescape(s string) string {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				b = append(b, c[0])
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	if pg.Fault(string(b), len(s)) != "" {
		return s
	}
	return string(b)
}
