package idemhttp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/pgonce/pgonce/idem"
)

const (
	defaultMaxBody     = 1 << 20
	defaultMaxResponse = 1 << 20
	defaultMaxWait     = 5 * time.Second
)

// Config tunes a [Handle] or a [Middleware]. A nil *Config is ready to use.
type Config struct {
	// MaxBody is how many bytes the body of a request may have; a larger one gets 413. The body
	// is kept in memory. Defaults to 1 MiB.
	MaxBody int64

	// MaxResponse is how many bytes the body of a response may have. It is kept in memory, and stored
	// with the record. A larger one is rolled back and answered with 500, so store large documents elsewhere, and answer
	// with a link. Defaults to 1 MiB.
	MaxResponse int64

	// MaxWait is how long a request waits for a free connection of the pool, beside the
	// [idem.Op.Wait] that it may wait for another request with its key. After that it gets 503, and nothing
	// was done. Defaults to 5 seconds.
	MaxWait time.Duration

	// CanonicalJSON compares the bodies of requests by what they say as JSON ([idem.JSON]), so that a client may
	// marshal its request anew for each repeat. A body that is not JSON, or that two readers could understand
	// differently, gets 400. Defaults to comparing bytes. Turning it on or off while keys live lets other
	// requests pass under them: see [idem.Fingerprint].
	CanonicalJSON bool

	// KeyOptional lets requests without an Idempotency-Key through to the handler of a [Middleware], after scope has
	// agreed, and without a transaction ([ErrNoTx]): they are executed as often as they come. Defaults to 400.
	KeyOptional bool

	// MinKey is how many bytes an Idempotency-Key must have; a shorter one gets 400. It is for services whose clients would otherwise
	// count from 1, and meet their own keys again after a restart: a UUID has 36. It keeps nobody else's keys away, since
	// each scope has its own. Raising it while keys live refuses the repeats of shorter ones. Defaults to 1.
	MinKey int

	// Headers names further headers of responses that are stored and replayed, beside those of [Response]. Those that
	// are for one caller or one connection (Set-Cookie, WWW-Authenticate, Date and the like) are refused.
	Headers []string

	// Fate decides what becomes of a response by its status. final says that it was declared so, by [idem.Final]
	// or by [Final]; only Refuse keeps that promise. Defaults to [DefaultFate], to which it can
	// leave what it does not care about. It runs inside the transaction.
	Fate func(status int, final bool) Fate

	// Challenge is the WWW-Authenticate header of a 401 (RFC 9110 wants one), such as "Bearer".
	// Defaults to none.
	Challenge string

	// Logger gets a line for each request that is answered with 500 or 503, since the client is
	// not told why. Defaults to slog.Default(): these errors have no other way out.
	Logger *slog.Logger
}

// Fate is what becomes of a request once there is a response to it. The zero Fate is none: the response is taken for
// a mistake, everything is rolled back, and the client gets 500.
type Fate int

const (
	// Commit commits what was written, and stores the response for every repeat.
	Commit Fate = iota + 1

	// Refuse rolls back what was written, and stores the response for every repeat.
	Refuse

	// Forget rolls back what was written, and stores nothing: a repeat is executed again.
	Forget
)

// DefaultFate commits 2xx and 3xx, and forgets everything else, but for what is declared final: that is refused if
// it is a 4xx which tells the client that its request is wrong, and no Fate otherwise. 401, 403, 408, 409, 425, 429
// (ask as somebody else, or at another time) and 5xx cannot be final.
func DefaultFate(status int, final bool) Fate {
	switch {
	case final && refuses(status):
		return Refuse
	case final:
		return 0
	case status >= 200 && status < 400:
		return Commit
	}
	return Forget
}

// refuses says whether a response may be declared final: it tells the client that its request is wrong, and
// not that it should be made by somebody else or at another time.
func refuses(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusConflict,
		http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status >= 400 && status < 500
}

// resolved is the configuration with its defaults filled in.
func (c *Config) resolved() (Config, error) {
	var cfg Config
	if c != nil {
		cfg = *c
	}
	if cfg.MinKey < 0 || cfg.MinKey > idem.MaxID {
		return cfg, fmt.Errorf("MinKey of %d: a key has 1 to %d bytes", cfg.MinKey, idem.MaxID)
	}
	if cfg.MaxBody < 0 || cfg.MaxResponse < 0 || cfg.MaxWait < 0 {
		return cfg, errors.New("negative limit: leave it 0 for the default")
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = defaultMaxBody
	}
	if cfg.MaxResponse == 0 {
		cfg.MaxResponse = defaultMaxResponse
	}
	if cfg.MaxWait == 0 {
		cfg.MaxWait = defaultMaxWait
	}
	if cfg.Fate == nil {
		cfg.Fate = DefaultFate
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	headers := make([]string, len(cfg.Headers)) // ours, in the form that net/http has
	for i, name := range cfg.Headers {
		headers[i] = http.CanonicalHeaderKey(name)
		if personal(headers[i]) || !isToken(name) {
			return cfg, fmt.Errorf("header %q cannot be replayed: it is for one caller or one connection, or no name of a header", name)
		}
	}
	cfg.Headers = headers
	return cfg, nil
}

// fateOf asks Fate, and refuses what would tell a client of a success that is not there.
func (c *Config) fateOf(status int, final bool) (Fate, error) {
	fate := c.Fate(status, final)
	switch {
	case final && fate != Refuse:
		return fate, fmt.Errorf("response of status %d cannot be final", status)
	case fate != Commit && fate != Refuse && fate != Forget:
		return fate, fmt.Errorf("response of status %d has the fate %d, which is none", status, fate)
	case fate != Commit && status < 300:
		return fate, fmt.Errorf("response of status %d would be a success that was rolled back", status)
	}
	return fate, nil
}

// checked is a response as it is sent, or says why it cannot be.
func (c *Config) checked(r Response) (Response, error) {
	if int64(len(r.Body)) > c.MaxResponse {
		return r, &tooLargeError{c.MaxResponse}
	}
	return r.checked()
}

// tooLargeError is what a handler gets that writes too much, and the log.
type tooLargeError struct{ most int64 }

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("idemhttp: response has a body of more than %d bytes (Config.MaxResponse)", e.most)
}

// storable says why a response cannot be stored.
func (c *Config) storable(r Response) error {
	for name := range r.Header {
		if !c.replayable(name) {
			return fmt.Errorf("response has the header %s, which would not be the same for a repeat: "+
				"set it in a middleware around the handler, or name it in Config.Headers", name)
		}
	}
	return nil
}

// replayable says whether a header of a stored response is one that every repeat may get. The name is canonical.
func (c *Config) replayable(name string) bool {
	switch name {
	case "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Location", "Content-Type",
		"Etag", "Last-Modified", "Location", "Vary", "X-Content-Type-Options":
		return true
	}
	for _, h := range c.Headers {
		if h == name {
			return true
		}
	}
	return false
}

// personal says whether a header speaks to one caller, about one connection or one moment, so that nobody else
// may get it.
func personal(name string) bool {
	switch name {
	case "Set-Cookie", "Set-Cookie2", "Authorization", "Www-Authenticate", "Authentication-Info", "Clear-Site-Data",
		"Date", "Age", "Retry-After", "Content-Length", replayedHeader,
		"Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return strings.HasPrefix(name, "Proxy-") || strings.HasPrefix(name, http.TrailerPrefix)
}

// isToken says whether a string can be the name of a header (RFC 9110, section 5.6.2).
func isToken(name string) bool {
	for _, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return name != ""
}
