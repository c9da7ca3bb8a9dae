package dblock

import (
	"os"
	"syscall"
)

// watch learns from the kernel that the server has closed a connection, while nobody reads from it. It asks for
// the end of the stream only, so answers do not wake it, and it touches no byte.
type watch struct {
	engine *engine
	poller *os.File // an epoll instance
	fd     int

	// Under the engine's mutex.
	next     int32
	sessions map[int32]*session
}

// newWatch returns nil where the kernel has no room for it: then heartbeats find out.
func newWatch(e *engine) *watch {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil
	}
	if err := syscall.SetNonblock(fd, true); err != nil { // so that the runtime waits for it without a thread
		_ = syscall.Close(fd)
		return nil
	}
	w := &watch{engine: e, poller: os.NewFile(uintptr(fd), "epoll"), fd: fd, sessions: map[int32]*session{}}
	e.wg.Go(w.run)
	return w
}

// add watches a session. The kernel forgets a socket that is closed. The mutex is held.
func (w *watch) add(s *session) {
	if w == nil {
		return
	}
	socket := s.conn.Socket()
	if socket == nil {
		return
	}
	w.next++
	id := w.next // not the descriptor, which may be another one's by the time of the event
	_ = socket.Control(func(fd uintptr) {
		ev := syscall.EpollEvent{Events: syscall.EPOLLRDHUP | epollOneShot, Fd: id}
		if syscall.EpollCtl(w.fd, syscall.EPOLL_CTL_ADD, int(fd), &ev) == nil {
			w.sessions[id] = s
			s.watched = id
		}
	})
}

// epollOneShot is syscall.EPOLLONESHOT: the end of a stream is told once.
const epollOneShot = 0x40000000

// remove forgets a session. The mutex is held.
func (w *watch) remove(s *session) {
	if w != nil {
		delete(w.sessions, s.watched)
	}
}

func (w *watch) run() {
	raw, err := w.poller.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) (done bool) {
		w.look(int(fd))
		return false // until the poller is closed
	})
}

// look takes what there is to know.
func (w *watch) look(fd int) {
	var events [32]syscall.EpollEvent
	for {
		n, err := syscall.EpollWait(fd, events[:], 0)
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 {
			return
		}
		w.engine.mu.Lock()
		for _, ev := range events[:n] {
			if s := w.sessions[ev.Fd]; s != nil {
				w.engine.hungUp(s)
			}
		}
		w.engine.unlock()
	}
}

func (w *watch) close() {
	if w != nil {
		_ = w.poller.Close()
	}
}
