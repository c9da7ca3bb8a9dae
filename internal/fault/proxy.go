//go:build unix

// Package fault breaks connections to a real Postgres at a chosen message of the protocol.
package fault

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
	"testing"
)

// Kind is what happens to a connection, and when.
type Kind int

// Cut closes both sides, as a killed process or a reset would. Mute lets nothing through any more and
// closes nothing, as a network does that swallows packets: the server keeps the session, the
// client waits.
const (
	None Kind = iota
	CutBeforeCommit
	CutAfterCommit // the server has committed, the client never hears of it
	MuteBeforeCommit
	MuteAfterCommit
	MuteNext      // at the client's next message
	MuteInRequest // when the client's next message has come through, and none that follows it
	CutAnswer     // the server has done what it was asked next, the client never hears of it
	MuteSecondRow // when one row of a result has come through
)

func (k Kind) String() string {
	return [...]string{"none", "cut before COMMIT", "cut after COMMIT", "mute before COMMIT", "mute after COMMIT", "mute at the next message", "mute in the next request", "cut the next answer", "mute at the second row"}[k]
}

func (k Kind) beforeCommit() bool { return k == CutBeforeCommit || k == MuteBeforeCommit }
func (k Kind) mute() bool {
	return k == MuteBeforeCommit || k == MuteAfterCommit || k == MuteNext || k == MuteInRequest || k == MuteSecondRow
}

// Proxy stands between clients and a server on a unix socket or on TCP. It reads the messages that it
// passes on, and so knows each connection by its backend's pid.
type Proxy struct {
	server   net.Addr
	url      string
	listener net.Listener
	wg       sync.WaitGroup

	mu     sync.Mutex
	closed bool
	links  map[*link]bool
	armed  map[uint32]Kind
}

// New starts a proxy in front of the server of serverURL. It ends with the test.
func New(t testing.TB, serverURL string) *Proxy {
	t.Helper()
	u, err := url.Parse(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{links: map[*link]bool{}, armed: map[uint32]Kind{}}
	query := u.Query()
	if folder := query.Get("host"); folder != "" {
		query.Set("host", p.listenUnix(t, folder))
	} else {
		u.Host = p.listenTCP(t, u.Host)
	}
	query.Set("sslmode", "disable") // or there would be no message to read
	u.RawQuery = query.Encode()
	p.url = u.String()
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// listenUnix listens on a socket in a folder of its own, and returns the folder.
func (p *Proxy) listenUnix(t testing.TB, folder string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "fault-") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	const socket = ".s.PGSQL.5432"
	p.server = &net.UnixAddr{Net: "unix", Name: filepath.Join(folder, socket)}
	p.listener, err = net.Listen("unix", filepath.Join(dir, socket))
	if err == nil { // a pooler that runs as another user may come through
		err = errors.Join(os.Chmod(dir, 0o711), os.Chmod(filepath.Join(dir, socket), 0o666))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// listenTCP listens on the loopback interface, and returns the address.
func (p *Proxy) listenTCP(t testing.TB, server string) string {
	t.Helper()
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(server, "5432")
	}
	addr, err := net.ResolveTCPAddr("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	p.server = addr
	p.listener, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return p.listener.Addr().String()
}

func (p *Proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for l := range p.links {
		l.close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// URL is the server's URL by way of the proxy.
func (p *Proxy) URL() string { return p.url }

// Arm breaks the connection of one backend when it comes to the point. Other
// connections are not affected.
func (p *Proxy) Arm(pid int64, kind Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed[uint32(pid)] = kind
}

// Refuse lets no new connection in from here on, as a server that is gone.
func (p *Proxy) Refuse() { _ = p.listener.Close() }

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial(p.server.Network(), p.server.String())
		if err != nil {
			_ = client.Close()
			continue
		}
		l := &link{proxy: p, client: client, server: server, statements: map[string]string{}, muted: make(chan struct{})}
		if !p.add(l) {
			l.close()
			return
		}
		p.wg.Go(func() { l.pump(l.fromClient) })
		p.wg.Go(func() { l.pump(l.fromServer) })
	}
}

// add keeps l to be closed with the proxy, and says no when that has happened.
func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.links[l] = true
	return true
}

// link is one connection through the proxy.
type link struct {
	proxy          *Proxy
	client, server net.Conn
	statements     map[string]string // the client's prepared statements

	once  sync.Once
	muted chan struct{} // closed when nothing may pass any more

	mu  sync.Mutex
	pid uint32
}

var errMuted = errors.New("muted")

// pump runs one direction. At its end the other one ends too, unless the link was muted.
func (l *link) pump(direction func() error) {
	if errors.Is(direction(), errMuted) {
		return
	}
	select {
	case <-l.muted:
	default:
		l.close()
	}
}

func (l *link) close() {
	_ = l.client.Close()
	_ = l.server.Close()
}

func (l *link) kind() Kind {
	l.mu.Lock()
	pid := l.pid
	l.mu.Unlock()
	l.proxy.mu.Lock()
	defer l.proxy.mu.Unlock()
	return l.proxy.armed[pid]
}

// strike breaks the link, and returns the error that ends a direction.
func (l *link) strike() error {
	kind := l.kind()
	if kind.mute() {
		l.once.Do(func() { close(l.muted) })
		return errMuted
	}
	return fmt.Errorf("%v", kind)
}

func (l *link) silent() bool {
	select {
	case <-l.muted:
		return true
	default:
		return false
	}
}

func (l *link) fromClient() error {
	r := bufio.NewReader(l.client)
	msg, err := read(r, 0) // the startup message has no type; its length begins with a zero byte
	for ; err == nil; msg, err = read(r, 1) {
		if l.silent() {
			return errMuted
		}
		if commits := l.commits(msg); commits && l.kind().beforeCommit() || l.kind() == MuteNext {
			return l.strike()
		}
		if _, err := l.server.Write(msg); err != nil {
			return err
		}
		if l.kind() == MuteInRequest {
			return l.strike()
		}
	}
	return err
}

// commits reports whether a message makes the server commit. It remembers prepared statements.
func (l *link) commits(msg []byte) bool {
	switch body := msg[5:]; msg[0] {
	case 'P': // name, text
		name, rest, _ := bytes.Cut(body, []byte{0})
		text, _, _ := bytes.Cut(rest, []byte{0})
		l.statements[string(name)] = string(text)
	case 'Q':
		return strings.Contains(strings.ToLower(string(body)), "commit")
	case 'B': // portal, statement
		_, rest, _ := bytes.Cut(body, []byte{0})
		name, _, _ := bytes.Cut(rest, []byte{0})
		return strings.EqualFold(l.statements[string(name)], "commit")
	}
	return false
}

func (l *link) fromServer() error {
	r := bufio.NewReader(l.server)
	for rows := 0; ; {
		msg, err := read(r, 1)
		if err != nil {
			return err
		}
		if msg[0] == 'K' { // the backend's pid and cancel key
			l.mu.Lock()
			l.pid = binary.BigEndian.Uint32(msg[5:9])
			l.mu.Unlock()
		}
		if l.silent() {
			return errMuted
		}
		if l.kind() == CutAnswer && msg[0] == 'Z' { // ready for the next query: the transaction is over
			return l.strike()
		}
		if l.kind() == MuteSecondRow && msg[0] == 'D' {
			if rows++; rows == 2 {
				return l.strike()
			}
		}
		if kind := l.kind(); kind != None && kind != MuteNext && kind != MuteInRequest && kind != MuteSecondRow && !kind.beforeCommit() && msg[0] == 'C' && string(msg[5:]) == "COMMIT\x00" {
			return l.strike()
		}
		if _, err := l.client.Write(msg); err != nil {
			return err
		}
	}
}

// read reads one message: typ bytes of type, a length that counts itself, the body.
func read(r io.Reader, typ int) ([]byte, error) {
	head := make([]byte, typ+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	msg := make([]byte, typ+int(binary.BigEndian.Uint32(head[typ:])))
	copy(msg, head)
	_, err := io.ReadFull(r, msg[len(head):])
	return msg, err
}
