package idemtest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

// wire is how a process reaches its database: a proxy that reads the protocol's messages, and lets its plan decide about each.
type wire struct {
	plan     *plan
	server   net.Addr
	url      string
	dir      string // of its socket, if it is one
	listener net.Listener
	wg       sync.WaitGroup

	mu     sync.Mutex
	closed bool
	links  map[*link]bool
}

// newWire listens on a socket of the kind that the server has.
func newWire(databaseURL string, p *plan) (*wire, error) {
	u, err := url.Parse(databaseURL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New("want a URL such as postgres://user:password@localhost:5432/database")
	}
	w := &wire{plan: p, links: map[*link]bool{}}
	query := u.Query()
	query.Set("sslmode", "disable") // or there would be no message to read
	host, port := firstOf(query.Get("host"), u.Hostname()), firstOf(query.Get("port"), u.Port(), "5432")
	if strings.HasPrefix(host, "/") {
		err = w.listenUnix(host, port)
		query.Set("host", w.dir)
	} else {
		err = w.listenTCP(host, port)
		query.Del("host")
		query.Del("port")
	}
	if err != nil {
		return nil, err
	}
	if w.dir == "" {
		u.Host = w.listener.Addr().String()
	}
	u.RawQuery = query.Encode()
	w.url = u.String()
	w.wg.Go(w.accept)
	return w, nil
}

// listenUnix listens on a socket in a folder of its own.
func (w *wire) listenUnix(folder, port string) (err error) {
	if w.dir, err = os.MkdirTemp("", "idem"); err != nil {
		return err
	}
	socket := ".s.PGSQL." + port
	w.server = &net.UnixAddr{Net: "unix", Name: filepath.Join(folder, socket)}
	if w.listener, err = net.Listen("unix", filepath.Join(w.dir, socket)); err != nil { //nolint:noctx // it does not wait
		return errors.Join(err, os.RemoveAll(w.dir))
	}
	return nil
}

// listenTCP listens on the loopback interface.
func (w *wire) listenTCP(host, port string) (err error) {
	if host == "" || strings.Contains(host, ",") {
		return errors.New("want a URL that names one host")
	}
	if w.server, err = net.ResolveTCPAddr("tcp", net.JoinHostPort(host, port)); err != nil {
		return err
	}
	w.listener, err = net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not wait
	return err
}

func firstOf(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

func (w *wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		l := &link{wire: w, client: client, texts: map[string]string{}, portals: map[string]string{}}
		if !w.add(l) {
			l.close()
			return
		}
		w.wg.Go(l.run)
	}
}

func (w *wire) add(l *link) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links[l] = true
	return !w.closed
}

// bury breaks all connections, as the end of a process does.
func (w *wire) bury() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for l := range w.links {
		l.close()
	}
}

func (w *wire) close() {
	_ = w.listener.Close()
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.bury()
	w.wg.Wait()
	if w.dir != "" {
		_ = os.RemoveAll(w.dir)
	}
}

// link is one connection.
type link struct {
	wire   *wire
	client net.Conn

	mu       sync.Mutex
	server   net.Conn
	shut     bool
	requests []bool // that the server has not answered to the end: whether it has something to do for them

	texts, portals map[string]string // of the client's statements and portals, by name
	working        bool              // something is to be done for the request that is being sent
	last           atomic.Pointer[string]
	inTx           atomic.Bool // by the last answer
	impatient      atomic.Bool // the client wants answers before the end of its request
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
}

const (
	cancelRequest = 80877102
	sslRequest    = 80877103
	gssRequest    = 80877104
)

// run connects, and passes messages on in both directions until one of them ends.
func (l *link) run() {
	defer l.close()
	from := bufio.NewReader(l.client)
	startup, err := l.startup(from)
	if err != nil {
		return
	}
	if l.wire.plan.isDead() {
		_, _ = l.client.Write(refusal())
		return
	}
	if !l.connect() {
		return
	}
	if _, err := l.server.Write(startup); err != nil || code(startup) == cancelRequest {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer l.close()
		l.toServer(from)
	}()
	l.toClient()
	l.close()
	<-done
}

// startup reads the client's first message. There is no encryption to be had.
func (l *link) startup(from *bufio.Reader) ([]byte, error) {
	for {
		msg, err := readMessage(from, 0)
		if err == nil && len(msg) < 8 {
			err = errors.New("a startup message that is none")
		}
		if err != nil || code(msg) != sslRequest && code(msg) != gssRequest {
			return msg, err
		}
		if _, err := l.client.Write([]byte("N")); err != nil {
			return nil, err
		}
	}
}

// connect connects to the server, unless the link is closed meanwhile.
func (l *link) connect() bool {
	server, err := net.Dial(l.wire.server.Network(), l.wire.server.String()) //nolint:noctx // it is on this machine, and closed by close
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = server
	if l.shut {
		_ = server.Close()
	}
	return !l.shut
}

func code(startup []byte) uint32 { return binary.BigEndian.Uint32(startup[4:]) }

// refusal is what a dead process hears when it connects again: an error that there is no use in trying after.
func refusal() []byte {
	fields := "SERROR\x00VERROR\x00C28000\x00M" + errDead.Error() + "\x00\x00"
	return append(binary.BigEndian.AppendUint32([]byte{'E'}, uint32(len(fields)+4)), fields...) //nolint:gosec // it is short
}

// toServer passes the client's messages on. Each that makes the server do something is a point.
func (l *link) toServer(from *bufio.Reader) {
	to := bufio.NewWriter(l.server)
	for {
		msg, err := readMessage(from, 1)
		if err != nil {
			return
		}
		if where := l.asks(msg); where != "" {
			_ = to.Flush() // what came before is done
			if l.wire.plan.pass(where) != nil {
				return
			}
			l.working = true
		}
		if msg[0] == 'Q' || msg[0] == 'S' {
			l.mu.Lock()
			l.requests = append(l.requests, l.working)
			l.mu.Unlock()
			l.working = false
		}
		if _, err := to.Write(msg); err != nil {
			return
		}
		if from.Buffered() == 0 && to.Flush() != nil {
			return
		}
	}
}

// asks says what the server is about to do for a message, and "" when that is nothing. It keeps the texts of statements.
func (l *link) asks(msg []byte) string {
	body := msg[5:]
	switch msg[0] {
	case 'P': // name, text
		name, rest := cut(body)
		l.texts[name], _ = cut(rest)
	case 'B': // portal, statement
		portal, rest := cut(body)
		name, _ := cut(rest)
		l.portals[portal] = l.texts[name]
	case 'H':
		l.impatient.Store(true)
	case 'Q':
		text, _ := cut(body)
		return l.sends(text)
	case 'E':
		portal, _ := cut(body)
		return l.sends(l.portals[portal])
	case 'S':
		if l.working && !l.inTx.Load() { // it commits what was done
			return short(l.lastText()) + " was sent, before the end of the request"
		}
	case 'c':
		return "the end of a COPY is sent"
	}
	return ""
}

func (l *link) lastText() string {
	if text := l.last.Load(); text != nil {
		return *text
	}
	return "a message"
}

func (l *link) sends(text string) string {
	l.last.Store(&text)
	return short(text) + " is sent"
}

// short is a statement in a line.
func short(text string) string {
	const most = 70
	runes := []rune(strings.Join(strings.Fields(text), " "))
	if len(runes) > most {
		runes = append(runes[:most], '…')
	}
	return string(runes)
}

func cut(body []byte) (text string, rest []byte) {
	before, after, _ := bytes.Cut(body, []byte{0})
	return string(before), after
}

// toClient passes the server's messages on. An answer is held back until it is complete, so that it can be lost as a whole, which
// is a point.
func (l *link) toClient() {
	from := bufio.NewReader(l.server)
	var held bytes.Buffer
	for {
		msg, err := readMessage(from, 1)
		if err != nil {
			return
		}
		held.Write(msg)
		done, working := msg[0] == 'Z', l.answering(msg)
		switch {
		case done && working:
			if l.wire.plan.pass(short(l.lastText())+" was done, before its answer is heard") != nil {
				return
			}
		case working && msg[0] != 'G' && msg[0] != 'W' && !l.impatient.Load(): // these ask the client for more
			continue
		}
		if _, err := held.WriteTo(l.client); err != nil {
			return
		}
	}
}

// answering says whether a message is part of the answer to a request for which something was done.
func (l *link) answering(msg []byte) (working bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	working = len(l.requests) > 0 && l.requests[0]
	if msg[0] == 'Z' { // ready for the next one
		l.inTx.Store(len(msg) > 5 && msg[5] != 'I')
		l.impatient.Store(false)
		l.requests = l.requests[min(1, len(l.requests)):]
	}
	return working
}

// readMessage reads one message: typ bytes of type, a length that counts itself, the body.
func readMessage(r io.Reader, typ int) ([]byte, error) {
	head := make([]byte, typ+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[typ:])
	if size < 4 || size > 1<<30 {
		return nil, fmt.Errorf("a message of %d bytes", size)
	}
	msg := make([]byte, typ+int(size))
	copy(msg, head)
	_, err := io.ReadFull(r, msg[len(head):])
	return msg, err
}
