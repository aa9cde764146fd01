package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/monitor"
	"zulip-nats/subjects"
)

// watched gives the status of a realm for package monitor: before there is a bridge, too,
// since a start may wait for a long time for the first answer of a server.
type watched struct {
	realm  subjects.Realm
	began  time.Time
	bridge atomic.Pointer[bridge.Bridge]
}

func (w *watched) statuses() []bridge.Status {
	if b := w.bridge.Load(); b != nil {
		return []bridge.Status{b.Status()}
	}
	return []bridge.Status{{Realm: w.realm.String(), State: bridge.Starting, Since: w.began, LastEventID: -1}}
}

// askState asks the bridge for a new state, and says whether one will come.
func (w *watched) askState(realm string) bool {
	b := w.bridge.Load()
	return b != nil && realm == w.realm.String() && b.AskState()
}

// serve serves --http, if it is given, with --pprof if that is. stop may be called in any case.
func (w *watched) serve(address string, profiles bool, log zerolog.Logger) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	stop, err = monitor.Serve(address, monitor.New(readBuild().version, w.statuses), profiles, log)
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
