package cli

import (
	"context"
	"crypto/sha256"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"zulip-nats/fleet"
	"zulip-nats/logevent"
)

// settleTime is how long files are left alone after the last change: whoever writes them
// may not be done.
const settleTime = 300 * time.Millisecond

type hangupKey struct{}

// WithHangup gives the context of a program that is told by hangup that its settings are
// to be read again: as by SIGHUP. It is for [Run].
func WithHangup(ctx context.Context, hangup <-chan os.Signal) context.Context {
	return context.WithValue(ctx, hangupKey{}, hangup)
}

// reloads reads the settings again when it is told to, and when one of their files has
// changed, until stop is called or ctx ends.
func (p *process) reloads(ctx context.Context) (stop func()) {
	ctx, end := context.WithCancel(ctx)
	hangup, _ := ctx.Value(hangupKey{}).(<-chan os.Signal)
	w := p.watchFiles()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer w.close()
		settled := time.NewTimer(0)
		settled.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				p.reload()
				w.look(p.files())
			case change := <-w.changes():
				if w.concerns(change) {
					settled.Reset(settleTime)
				}
			case <-settled.C:
				if w.look(p.files()) { // the folder told of something else, or of nothing new
					p.reload()
					w.look(p.files())
				}
			}
		}
	}()
	return func() { end(); <-done }
}

// reload reads the settings again, and puts in force what can be.
func (p *process) reload() {
	c, err := p.read()
	if err != nil {
		logevent.ReloadFailed.Error(p.log).Str("error", strings.ReplaceAll(err.Error(), "\n", "; ")).
			Msg("the settings were read again, and they are not in order: all goes on as it was. Correct what the error " +
				"says; they are read again when the file changes, and on SIGHUP")
		return
	}
	p.level.Store(int32(c.LogLevel))
	if late := p.c.takeAStart(c); len(late) > 0 {
		logevent.ReloadPartly.Warn(p.log).Strs("options", late).
			Msg("these settings have changed, and take a new start: until then they stay as they were")
	}
	before := p.followers()
	was := func(name string) *followed {
		if i := slices.IndexFunc(before, func(f *followed) bool { return f.name == name }); i >= 0 {
			return before[i]
		}
		return nil
	}
	var now []*followed
	var realms []fleet.Realm
	for i := range c.Realms {
		f := p.newFollowed(&c.Realms[i])
		if running := was(f.name); f.wrong != nil && running != nil {
			if _, halted := p.fleet.Halted(f.name); !halted {
				logevent.ReloadFailed.Error(p.log).Str("realm", f.name).Err(f.wrong).
					Msg("the account of this realm cannot be read any more: the realm goes on as it was. Correct what the " +
						"error says; it is read again when a file changes, and on SIGHUP")
				f = running
			}
		}
		now, realms = append(now, f), append(realms, p.asRealm(f))
	}
	changes := p.fleet.Set(realms)
	begun := slices.Concat(changes.Added, changes.Changed, changes.Retried)
	for i, f := range now {
		if !slices.Contains(begun, f.name) {
			now[i] = was(f.name)
			now[i].source.Store(&f.r.Account)
			now[i].g.poller.Client.Refresh()
		}
	}
	p.mu.Lock()
	p.realms = now
	p.c.Realms = c.Realms
	p.mu.Unlock()
	if len(begun)+len(changes.Removed) > 0 {
		p.connecting.Lock()
		if p.conn != nil {
			p.beFound()
		}
		p.connecting.Unlock()
	}
	logevent.Reloaded.Info(p.log).Strs("added", changes.Added).Strs("removed", changes.Removed).
		Strs("changed", changes.Changed).Strs("retried", changes.Retried).Int("unchanged", len(now)-len(begun)).
		Msg("the settings were read again")
}

// takeAStart names the options that differ, and that nothing but a new start puts in
// force.
func (c *Config) takeAStart(now *Config) (options []string) {
	was, is := c.ofProcess(), now.ofProcess()
	for i := range was {
		if !reflect.DeepEqual(was[i].value, is[i].value) {
			options = append(options, was[i].options)
		}
	}
	return options
}

// ofProcess are the settings that all realms share, but for the level of the log.
func (c *Config) ofProcess() []struct {
	options string
	value   any
} {
	return []struct {
		options string
		value   any
	}{
		{"nats-...", c.NATS}, {"nats-context", c.Context}, {"nats-js-domain", c.JSDomain},
		{"nats-js-api-prefix", c.JSAPIPrefix}, {"nats-port", c.NATSPort}, {"state-dir", c.StateDir},
		{"no-lease", c.NoLease}, {"lease-ttl", c.LeaseTTL}, {"http", c.HTTP}, {"pprof", c.Pprof}, {"show", c.Show},
		{"log-format", c.LogFormat},
	}
}

// watched are files whose changes the system tells of. A nil watcher tells of none.
type watched struct {
	watcher *fsnotify.Watcher
	names   []string
	seen    map[string][sha256.Size]byte
}

// watchFiles begins to watch the files of the settings. Where the system does not tell of
// changes, there is SIGHUP.
func (p *process) watchFiles() *watched {
	w := &watched{}
	var err error
	if w.watcher, err = fsnotify.NewWatcher(); err != nil {
		w.watcher = nil
		p.log.Debug().Err(err).Msg("the system does not tell of changes of files; SIGHUP reads them again")
	}
	w.look(p.files())
	return w
}

func (w *watched) close() {
	if w.watcher != nil {
		_ = w.watcher.Close() // there is nothing to lose
	}
}

// changes tells of changes in the folders of the files.
func (w *watched) changes() <-chan fsnotify.Event {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Events
}

// concerns says whether a change may be one of the files: it has its name, or is a link by
// which Kubernetes exchanges all files of a folder at once (..data).
func (w *watched) concerns(e fsnotify.Event) bool {
	name := filepath.Base(e.Name)
	return strings.HasPrefix(name, "..") || slices.Contains(w.names, name)
}

// look says whether the content of any of the files is another than at the look before,
// and watches their folders from now on: a file that is put in the place of another, as
// editors do it, is seen only so. What is no plain file, as a pipe, can be read only once.
func (w *watched) look(files []string) (changed bool) {
	seen := map[string][sha256.Size]byte{}
	w.names = nil
	var folders []string
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			data, _ := os.ReadFile(file) // an error is told by whoever needs the file
			seen[file] = sha256.Sum256(data)
		}
		w.names = append(w.names, filepath.Base(file))
		folders = append(folders, filepath.Dir(file))
	}
	changed = !maps.Equal(seen, w.seen)
	w.seen = seen
	if w.watcher == nil {
		return changed
	}
	watching := w.watcher.WatchList()
	for _, folder := range folders {
		if !slices.Contains(watching, folder) {
			_ = w.watcher.Add(folder) // there may be none yet, or too many are watched on this machine
		}
	}
	for _, folder := range watching {
		if !slices.Contains(folders, folder) {
			_ = w.watcher.Remove(folder) // it may be gone
		}
	}
	return changed
}
