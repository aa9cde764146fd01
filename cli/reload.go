package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"zulip-nats/fleet"
	"zulip-nats/logevent"
	"zulip-nats/redact"
)

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
	w := watch(p.files(), p.log)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer w.close()
		again := false // something has changed while the settings were read
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-w.events():
				if w.concerns(e) {
					w.settled.Reset(settleTime)
				}
				continue
			case <-w.errors():
				w.settled.Reset(settleTime)
				continue
			case <-hangup:
				w.look(p.files())
			case <-w.settled.C:
				if !w.look(p.files()) && !again { // the folder told of something else, or of nothing new
					continue
				}
			}
			p.reload()
			if again = w.look(p.files()); again {
				w.settled.Reset(settleTime)
			}
		}
	}()
	return func() { end(); <-done }
}

// reload reads the settings again, and puts in force what can be.
func (p *process) reload() {
	refuse := func(realm string, err error, text string) {
		line := logevent.ReloadFailed.Error(p.log)
		if realm != "" {
			line.Str("realm", realm)
		}
		line.Str("error", strings.ReplaceAll(err.Error(), "\n", "; ")).
			Msg(text + ". Correct what the error says; the settings are read again when a file changes, and on SIGHUP")
	}
	const asBefore = "the settings were to be read again, and are not in order: all goes on as it was"
	for _, file := range p.files() {
		if !isPlain(file) {
			refuse("", fmt.Errorf("%s is no plain file, and can be read only once", redact.Path(file)), asBefore)
			return
		}
	}
	c, err := p.read()
	if err != nil {
		refuse("", err, asBefore)
		return
	}
	p.level.Store(int32(c.LogLevel))
	if late := p.c.takeAStart(c); len(late) > 0 {
		logevent.ReloadPartly.Warn(p.log).Strs("options", late).
			Msg("these settings have changed, and take a new start: until then they stay as they were")
	}
	before := p.followers()
	var now []*followed
	var realms []fleet.Realm
	for i := range c.Realms {
		f := p.newFollowed(&c.Realms[i])
		if was := f.instead(before); f.wrong != nil && was != nil && was.wrong == nil {
			if _, halted := p.fleet.Halted(was.name); !halted {
				refuse(was.name, f.wrong, "the account of this realm cannot be used any more: the realm goes on as it was")
				f = was
			}
		}
		now, realms = append(now, f), append(realms, p.asRealm(f))
	}
	changes := p.fleet.Set(realms)
	begun := slices.Concat(changes.Added, changes.Changed, changes.Retried)
	var keys []string // realms that go on, with another one
	for i, f := range now {
		was := named(before, f.name)
		if f == was {
			continue
		}
		if slices.Contains(begun, f.name) {
			if was != nil {
				f.before.Store(cmp.Or(was.bridge.Load(), was.before.Load()))
			}
			continue
		}
		now[i] = was // which runs on
		if was.wrong == nil && f.wrong == nil {
			was.source.Store(&f.r.Account)
			if was.g.poller.Client.Refresh(f.g.account) {
				keys = append(keys, f.name)
			}
		}
	}
	p.mu.Lock()
	p.realms = now
	p.mu.Unlock()
	if len(begun)+len(changes.Removed) > 0 {
		p.beFound()
	}
	logevent.Reloaded.Info(p.log).Strs("added", changes.Added).Strs("removed", changes.Removed).
		Strs("changed", changes.Changed).Strs("retried", changes.Retried).Int("unchanged", len(now)-len(begun)).
		Strs("new_keys", keys).Msg("the settings were read again")
}

// instead is the one of the realms before that this one is in the place of; nil if it is
// new. One that is named by its site stays what it was: another site is wrong.
func (f *followed) instead(before []*followed) *followed {
	if len(before) != 1 || f.r.Name != "" {
		return named(before, f.name)
	}
	was := before[0]
	if f.wrong == nil && f.name != was.name {
		f.wrong = fmt.Errorf("the zuliprc names another site now, %s: start again to follow it",
			redact.URL(f.g.account.Site))
	}
	return was
}

// named is the realm of that name; nil if there is none.
func named(list []*followed, name string) *followed {
	if i := slices.IndexFunc(list, func(f *followed) bool { return f.name == name }); i >= 0 {
		return list[i]
	}
	return nil
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
	signedIn := c.NATS
	signedIn.URL = ""
	return []struct {
		options string
		value   any
	}{
		{"nats-url", c.NATS.URL}, {"what NATS is signed in with", signedIn}, {"nats-context", c.Context},
		{"nats-js-domain", c.JSDomain}, {"nats-js-api-prefix", c.JSAPIPrefix}, {"nats-port", c.NATSPort}, {"state-dir", c.StateDir},
		{"no-lease", c.NoLease}, {"lease-ttl", c.LeaseTTL}, {"http", c.HTTP}, {"pprof", c.Pprof}, {"show", c.Show},
		{"log-format", c.LogFormat},
	}
}
