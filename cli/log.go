package cli

import (
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"
)

// LogFormat is how the log is written.
type LogFormat string

// The formats. Auto is console on a terminal and JSON everywhere else.
const (
	LogAuto    LogFormat = "auto"
	LogConsole LogFormat = "console"
	LogJSON    LogFormat = "json"
)

// logLevel is the least level that is logged, which a reload may change: of all loggers
// that were made from the first.
type logLevel struct{ atomic.Int32 }

// Sample says whether a line is written (zerolog.Sampler).
func (l *logLevel) Sample(of zerolog.Level) bool { return int32(of) >= l.Load() }

// newLog makes the log of a command on w. Times are UTC with milliseconds in JSON, and
// the local time of day for people.
func newLog(w io.Writer, format LogFormat, least zerolog.Level) zerolog.Logger {
	log, _ := newLevelLog(w, format, least)
	return log
}

// newLevelLog is newLog with the level, which may be changed.
func newLevelLog(w io.Writer, format LogFormat, least zerolog.Level) (zerolog.Logger, *logLevel) {
	f, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(f.Fd()))
	if format == LogConsole || format == LogAuto && terminal {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: !terminal || os.Getenv("NO_COLOR") != ""}
	}
	level := new(logLevel)
	level.Store(int32(least))
	return zerolog.New(w).Sample(level).Hook(zerolog.HookFunc(func(e *zerolog.Event, _ zerolog.Level, _ string) {
		e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format("2006-01-02T15:04:05.000Z"))
	})), level
}
