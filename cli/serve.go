package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"zulip-nats/monitor"
)

// serve serves --http, if it is given, with --pprof if that is. stop may be called in any
// case.
func (p *process) serve() (stop func(), err error) {
	address := p.c.HTTP
	if address == "" {
		return func() {}, nil
	}
	stop, err = monitor.Serve(address, monitor.New(readBuild().version, p.statuses), p.c.Pprof, p.log)
	if err == nil {
		return stop, nil
	}
	why := err
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		why = e // the address is in the sentence already
	}
	remedy := "choose an address of this machine"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		remedy = "stop what listens there, or choose another port"
	case errors.Is(err, fs.ErrPermission):
		remedy = "choose another port: those below 1024 are root's on many systems"
	}
	return nil, hint(fmt.Errorf("--http (or ZULIP_NATS_HTTP) cannot be served at %s: %w", address, why), "%s", remedy)
}
