package fleet

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"zulip-nats/health"
	"zulip-nats/logevent"
)

// StartsPerSecond is how many realms are started in a second at most. Each start asks its
// Zulip and NATS some things, and a thousand at once would be in each other's way.
const StartsPerSecond = 50

// ErrAgain is the cause with which a realm's ctx ends where it is started again at once,
// with other settings.
var ErrAgain = errors.New("it is started again, with other settings")

// Realm is what runs under a name.
type Realm struct {
	Name string
	// Settings are what it runs with. A realm whose settings are deeply equal to those
	// before goes on as if nothing was, and its Run is not called again.
	Settings any
	// Run runs it until ctx ends, and returns nil then. An error before that says that an
	// operator has to mend something first. It is called again when it has returned, and
	// never twice at a time.
	Run func(ctx context.Context) error
	// Anyway says that Run has something to do at a stop: it is called even if the stop has
	// come before its turn, with a ctx that has ended.
	Anyway bool
}

// Fleet runs many realms, each by itself: what halts one leaves the others alone. Make it
// with [New].
type Fleet struct {
	log    zerolog.Logger
	starts *rate.Limiter

	mu      sync.Mutex
	members map[string]*member
	order   []string        // their names, as they were given
	ctx     context.Context // that of Run; nil: it does not run
	running sync.WaitGroup
	over    chan struct{} // gets a word when every realm is halted
	ends    []error       // of realms that were stopped because Run was
}

// member is a realm of the fleet. The fleet's mutex guards it.
type member struct {
	want   Realm                   // what is to run
	gone   bool                    // nothing is
	ran    bool                    // it has had its turn
	cancel context.CancelCauseFunc // ends what runs; nil: nothing does
	news   chan struct{}           // has a word when want or gone has changed, for one that is halted
	err    error                   // why it is halted; nil: it is not
	halted health.State            // the same for others
}

// New makes a fleet without realms. The log gets those that are halted while others run.
func New(log zerolog.Logger) *Fleet {
	return &Fleet{log: log, starts: rate.NewLimiter(StartsPerSecond, 1), members: map[string]*member{},
		over: make(chan struct{}, 1)}
}

// Changes are the names of realms, by what came of them.
type Changes struct{ Added, Removed, Changed, Retried []string }

// Set says which realms are to run, before Run and while it runs. Those that are new are
// started; those that are missing are stopped; those with other settings are stopped and
// started again, and those that are halted are tried again, in any case. It waits for
// nothing of that. Of two realms with one name the first counts.
func (f *Fleet) Set(realms []Realm) (c Changes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.order
	f.order = nil
	wanted := map[string]bool{}
	for _, r := range realms {
		if wanted[r.Name] {
			continue
		}
		wanted[r.Name] = true
		f.order = append(f.order, r.Name)
		m := f.members[r.Name]
		switch {
		case m == nil:
			c.Added = append(c.Added, r.Name)
			m = &member{want: r, news: make(chan struct{}, 1)}
			f.members[r.Name] = m
			f.start(m)
			continue
		case m.err != nil:
			c.Retried = append(c.Retried, r.Name)
			m.err = nil // so that nobody takes it for one that stays halted
		case m.gone || !reflect.DeepEqual(m.want.Settings, r.Settings):
			c.Changed = append(c.Changed, r.Name)
		default:
			continue
		}
		m.want, m.gone = r, false
		m.tell(ErrAgain)
	}
	for _, name := range before {
		if m := f.members[name]; m != nil && !wanted[name] {
			c.Removed = append(c.Removed, name)
			m.gone = true
			m.tell(nil)
		}
	}
	return c
}

// tell ends what runs, and wakes who waits to be tried again.
func (m *member) tell(cause error) {
	if m.cancel != nil {
		m.cancel(cause)
	}
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// start lets a member run, if Run does.
func (f *Fleet) start(m *member) {
	if ctx := f.ctx; ctx != nil {
		f.running.Go(func() { f.keep(ctx, m) })
	}
}

// Run runs the realms until ctx ends, and returns when each of them has: with what they
// return then. It returns earlier if every realm is halted, with the reasons. It is called
// once.
func (f *Fleet) Run(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	f.mu.Lock()
	f.ctx = ctx
	for _, name := range f.order {
		f.start(f.members[name])
	}
	f.mu.Unlock()
	var reasons error
	for all := false; !all && ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-f.over:
			reasons, all = f.reasons()
		}
	}
	f.mu.Lock()
	f.ctx = nil // what is set from now on comes too late
	f.mu.Unlock()
	end()
	f.running.Wait()
	return errors.Join(append(f.ends, reasons)...)
}

// reasons says why every realm is halted; all is false if one is not, any more.
func (f *Fleet) reasons() (reasons error, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.judge() {
		return nil, false
	}
	var errs []error
	for _, name := range f.order {
		err := f.members[name].err
		if len(f.order) > 1 {
			err = fmt.Errorf("%s: %w", name, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...), true
}

// keep runs one member for as long as it is wanted: anew when it was told so, and when it
// is to be tried again.
func (f *Fleet) keep(ctx context.Context, m *member) {
	for {
		one, what, more := f.begin(ctx, m)
		if !more {
			return
		}
		err := f.starts.Wait(one)
		if err == nil || what.Anyway && ctx.Err() != nil {
			err = what.Run(one)
		} else if one.Err() != nil {
			err = nil // it was told to end before it had begun
		}
		if !f.ended(ctx, one, m, err) {
			continue
		}
		select {
		case <-m.news:
		case <-ctx.Done():
			return
		}
	}
}

// begin says what is to run next, and until when; more is false if nothing is.
func (f *Fleet) begin(ctx context.Context, m *member) (one context.Context, what Realm, more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-m.news: // which is about what begins now
	default:
	}
	m.err = nil
	if m.gone || ctx.Err() != nil && (m.ran || !m.want.Anyway) {
		if m.gone {
			delete(f.members, m.want.Name)
			f.judge()
		}
		return nil, Realm{}, false
	}
	one, cancel := context.WithCancelCause(ctx)
	m.cancel, m.ran = cancel, true
	return one, m.want, true
}

// ended takes note of how a run ended, and says whether the member is halted.
func (f *Fleet) ended(ctx, one context.Context, m *member, err error) (halted bool) {
	f.mu.Lock()
	asked := one.Err() != nil
	m.cancel(nil)
	m.cancel = nil
	name, several := m.want.Name, len(f.order) > 1
	switch {
	case ctx.Err() != nil:
		if err != nil && several {
			err = fmt.Errorf("%s: %w", name, err)
		}
		f.ends = append(f.ends, err)
	case asked:
	default:
		if err == nil {
			err = errors.New("it ended by itself, which is a bug: report it")
		}
		halted = true
		m.err = err
		m.halted = health.State{Since: time.Now(), Tries: m.halted.Tries + 1, Text: err.Error()}
		f.judge()
	}
	f.mu.Unlock() // since whoever asks how things are must not wait for the log
	switch {
	case halted && several:
		logevent.RealmHalted.Error(f.log).Str("realm", name).Err(err).
			Msg("this realm is stopped: an operator has to mend something first. It is tried again when its settings or its " +
				"zuliprc change, and on SIGHUP, as long as others go on")
	case !halted && ctx.Err() == nil && err != nil:
		logevent.RealmEnded.Warn(f.log).Str("realm", name).Err(err).
			Msg("the realm was stopped for its new settings, or for good, and not all went well")
	}
	return halted
}

// judge says whether every realm is halted, and tells Run.
func (f *Fleet) judge() bool {
	for _, name := range f.order {
		if m := f.members[name]; m == nil || m.err == nil {
			return false
		}
	}
	if len(f.order) == 0 {
		return false
	}
	select {
	case f.over <- struct{}{}:
	default:
	}
	return true
}

// Halted says whether a realm is halted, since when and why. Any goroutine may ask.
func (f *Fleet) Halted(name string) (health.State, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.members[name]
	if m == nil || m.err == nil {
		return health.State{}, false
	}
	return m.halted, true
}
