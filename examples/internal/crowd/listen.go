package crowd

import (
	"net"
	"net/http"
	"time"
)

// Instance is one instance of a service, on a loopback socket.
type Instance struct {
	URL    string
	server *http.Server
	done   chan struct{}
}

// Listen starts an instance on an address; "" is any port.
func Listen(address string, h http.Handler) (*Instance, error) {
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	in := &Instance{URL: "http://" + l.Addr().String(), done: make(chan struct{})}
	in.server = &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(in.done)
		_ = in.server.Serve(l)
	}()
	return in, nil
}

// Close ends the instance at once: requests that are under way lose their connection.
func (in *Instance) Close() {
	_ = in.server.Close()
	<-in.done
}
