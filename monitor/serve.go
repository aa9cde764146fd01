package monitor

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/logevent"
)

// Limits of one request, so that nobody who asks slowly, or not at all, holds anything
// for long.
const (
	readTime  = 5 * time.Second
	writeTime = 30 * time.Second
	idleTime  = 2 * time.Minute // Prometheus asks each minute at least, mostly
	mostHead  = 16 << 10
	stopTime  = time.Second
)

// Serve answers at an address, host:port, and keeps the history, until stop is called,
// which waits for a second at most for answers that are under way. An address without a
// host is all of this machine's. One that others may reach is logged with a warning,
// since whoever can reach it may ask. With profiles there is /debug/pprof/ too. The error
// is that of the system: the port is taken, the address is not this machine's.
func Serve(address string, m *Monitor, profiles bool, log zerolog.Logger) (stop func(), err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	var h http.Handler = m
	served, risk := "a page for people, /healthz, /readyz, /status and /metrics are served", ""
	if profiles {
		h = withProfiles(h)
		served = "a page for people, /healthz, /readyz, /status, /metrics and, by --pprof, /debug/pprof/ are served"
		risk = "; and by --pprof they can look into this process, and slow it down as long as they like"
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: readTime, ReadTimeout: readTime, WriteTimeout: writeTime,
		IdleTimeout: idleTime, MaxHeaderBytes: mostHead,
		ErrorLog: stdlog.New(io.Discard, "", 0)} // what strangers send is no matter of ours
	url := fmt.Sprintf("http://%s", l.Addr())
	if at, ok := l.Addr().(*net.TCPAddr); ok && at.IP.IsLoopback() {
		logevent.HTTPServed.Info(log).Str("url", url).Msg(served)
	} else {
		logevent.HTTPServed.Warn(log).Str("url", url).
			Msg(served + " to whoever can reach this address, without a password: there is no content of events in " +
				"them, but who uses it and how much" + risk + "; use 127.0.0.1 if nobody else is to ask")
	}
	keep, end := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { m.history.keep(keep, m.realms) })
	work.Go(func() { _ = server.Serve(l) }) // ends by Shutdown or Close
	return func() {
		defer work.Wait()
		end()
		ctx, cancel := context.WithTimeout(context.Background(), stopTime)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close()
		}
	}, nil
}
