// Package embedded runs a NATS server with JetStream inside this process, so that the
// bridge is useful on a machine where nobody has set up NATS yet. It is one server,
// without a cluster and without accounts, that listens on 127.0.0.1 and keeps its streams
// in a folder: enough to begin with, and everything in it can be moved to a real server
// later, since clients see no difference.
//
// Whoever can open a connection to 127.0.0.1 may read and write everything in it.
package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/rs/zerolog"

	"zulip-nats/logevent"
)

// Reasons why [Start] may fail that somebody at the keyboard can remove. The error wraps
// one of them and names the folder or the port.
var (
	ErrDirInUse  = errors.New("another process uses the folder")
	ErrPortTaken = errors.New("another program listens on the port")
	ErrDir       = errors.New("the folder cannot be used")
)

// host is where the server listens: it has no passwords, so nobody from outside may reach
// it.
const host = "127.0.0.1"

// Options says what server to start.
type Options struct {
	// Dir holds the streams. It is made if it is missing (readable by its owner only),
	// and locked while the server runs. Required.
	Dir string
	// Port to listen on; 0 takes any that is free.
	Port int
	// SyncAlways flushes each write to the disk before it is acknowledged. Otherwise
	// JetStream flushes every two minutes, and a power cut can take acknowledged messages
	// with it (nats-server, server/filestore.go); a crash of the process alone never
	// does.
	SyncAlways bool
	// Log gets the server's own lines: what it tells while it works normally at debug
	// level, warnings and errors as such.
	Log zerolog.Logger
}

// Server is a running server.
type Server struct {
	nats *server.Server
	lock *os.File
	dir  string
	stop sync.Once
}

// Start starts a server and returns when it takes connections and its streams are
// recovered. The errors are sentences that name the folder or the port; errors.Is tells
// [ErrDirInUse], [ErrPortTaken] and [ErrDir] from the rest.
func Start(o Options) (*Server, error) {
	if o.Dir == "" {
		return nil, fmt.Errorf("%w: none was given for the embedded NATS server", ErrDir)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s, err := start(o, dir)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &Server{nats: s, lock: lock, dir: dir}, nil
}

func start(o Options, dir string) (*server.Server, error) {
	// The server reports a port that it cannot have as text only, so we try it first. If
	// somebody takes it in between, the server's own words come out below.
	port := server.RANDOM_PORT
	if o.Port != 0 {
		port = o.Port
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			if isTaken(err) {
				return nil, fmt.Errorf("port %d of %s is taken: %w", port, host, ErrPortTaken)
			}
			return nil, fmt.Errorf("the embedded NATS server cannot listen on port %d of %s: %w", port, host, err)
		}
		l.Close()
	}
	log := &logger{log: o.Log}
	s, err := server.NewServer(&server.Options{
		ServerName:             "zulip-nats",
		Host:                   host,
		Port:                   port,
		JetStream:              true,
		StoreDir:               dir,
		SyncAlways:             o.SyncAlways,
		NoSigs:                 true, // signals are main's business: the bridge has to stop before its server does
		DisableJetStreamBanner: true,
	})
	if err != nil {
		return nil, fmt.Errorf("the embedded NATS server cannot be set up: %w", err)
	}
	s.SetLoggerV2(log, false, false, false)
	s.Start() // returns when it listens, or after a fatal line
	if why := log.fatal(); why != "" {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("the embedded NATS server in %s did not start: %s", dir, why)
	}
	if !s.ReadyForConnections(30 * time.Second) {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("the embedded NATS server in %s does not take connections on %s", dir, host)
	}
	return s, nil
}

// lockDir makes the folder and takes it for this process: two servers in one folder would
// destroy each other's streams, and nats-server itself does not look. The lock goes with
// the process, however that ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the folder %s of the embedded NATS server cannot be made: %w (%w)", dir, ErrDir,
			reason(err))
	}
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the folder %s of the embedded NATS server cannot be written to: %w (%w)", dir, ErrDir,
			reason(err))
	}
	if err := flock(f); err != nil {
		owner := make([]byte, 20)
		n, _ := f.Read(owner)
		f.Close()
		if pid := strings.TrimSpace(string(owner[:n])); pid != "" {
			return nil, fmt.Errorf("the folder %s is in use by process %s: %w", dir, pid, ErrDirInUse)
		}
		return nil, fmt.Errorf("the folder %s is in use: %w", dir, ErrDirInUse)
	}
	// Only for the sentence above; without it the lock is as good.
	if f.Truncate(0) == nil {
		fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}

// reason is what the system said, without the path, which the sentence has already.
func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// URL is where clients connect: "nats://127.0.0.1:4222".
func (s *Server) URL() string { return s.nats.ClientURL() }

// Dir is the folder, as an absolute path.
func (s *Server) Dir() string { return s.dir }

// Shutdown ends the server: connections are closed, streams are flushed, the folder is
// free again when it returns. It may be called more than once.
func (s *Server) Shutdown() {
	s.stop.Do(func() {
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
		s.lock.Close()
	})
}

// logger hands the server's lines to zerolog. nats-server expects Fatalf to end the
// process; this one keeps the words, and Start returns them: only main exits.
type logger struct {
	log  zerolog.Logger
	mu   sync.Mutex
	why  string
	full bool // it was said that the disk is
}

// fatal gives the first fatal line, or nothing.
func (l *logger) fatal() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}

func line(format string, v []any) string { return strings.TrimSpace(fmt.Sprintf(format, v...)) }

func (l *logger) Noticef(format string, v ...any) {
	l.log.Debug().Msg("nats-server: " + line(format, v))
}
func (l *logger) Debugf(format string, v ...any) {
	l.log.Debug().Msg("nats-server: " + line(format, v))
}
func (l *logger) Tracef(format string, v ...any) {
	l.log.Trace().Msg("nats-server: " + line(format, v))
}

// Warnf keeps to itself what the server has to say of a request that it refused: whoever
// sent it has the answer. So it is with `check`, which asks what it may by requests that
// cannot be carried out.
func (l *logger) Warnf(format string, v ...any) {
	if text := line(format, v); strings.HasPrefix(text, "Invalid JetStream request") {
		l.log.Debug().Msg("nats-server: " + text)
		return
	}
	logevent.EmbeddedServer.Warn(l.log).Msg("nats-server: " + line(format, v))
}

// Errorf says once what a full disk means, and not with each write that is tried: the
// server does not write again by itself when there is room.
func (l *logger) Errorf(format string, v ...any) {
	text := line(format, v)
	full := strings.Contains(text, syscall.ENOSPC.Error())
	l.mu.Lock()
	said := l.full
	l.full = said || full
	l.mu.Unlock()
	if full && said {
		l.log.Debug().Msg("nats-server: " + text)
		return
	}
	logevent.EmbeddedServer.Error(l.log).Msg("nats-server: " + text)
	if full {
		logevent.DiskFull.Error(l.log).Msg("the disk of the embedded NATS server is full, and nothing is stored any " +
			"more: make room, and start zulip-nats again; until then Zulip's queue keeps the events")
	}
}

func (l *logger) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == "" {
		l.why = line(format, v)
	}
}
