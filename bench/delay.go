package main

import (
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"time"
)

// delay stands between a client and a server and holds each answer back for a time, as a network would.
type delay struct {
	listener net.Listener
	server   string
	each     time.Duration
	wg       sync.WaitGroup
}

// newDelay stands in front of the server of a URL, and returns the URL to use in its place.
func newDelay(serverURL string, each time.Duration) (*delay, string, error) {
	u, err := url.Parse(serverURL)
	if err != nil {
		return nil, "", err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	d := &delay{listener: listener, server: u.Host, each: each}
	u.Host = listener.Addr().String()
	d.wg.Go(d.accept)
	return d, u.String(), nil
}

// close waits until its connections have ended, which their clients do.
func (d *delay) close() error {
	err := d.listener.Close()
	d.wg.Wait()
	return err
}

func (d *delay) accept() {
	for {
		client, err := d.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", d.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		d.wg.Go(func() {
			_, _ = io.Copy(server, client)
			_ = errors.Join(server.Close(), client.Close())
		})
		d.wg.Go(func() {
			d.answers(client, server)
			_ = errors.Join(server.Close(), client.Close())
		})
	}
}

// part is some bytes of an answer, and when they may arrive.
type part struct {
	bytes []byte
	at    time.Time
}

// answers delays each part by itself: what follows it closely is not delayed for longer.
func (d *delay) answers(client io.Writer, server io.Reader) {
	parts := make(chan part, 1024)
	d.wg.Go(func() {
		defer close(parts)
		for {
			buf := make([]byte, 16<<10)
			n, err := server.Read(buf)
			if n > 0 {
				parts <- part{buf[:n], time.Now().Add(d.each)}
			}
			if err != nil {
				return
			}
		}
	})
	broken := false
	for p := range parts {
		<-time.After(time.Until(p.at))
		if !broken {
			_, err := client.Write(p.bytes)
			broken = err != nil
		}
	}
}
