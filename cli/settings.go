package cli

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/redact"
)

// settings is where the settings of `run` come from: words of the command line and
// variables, which stay, and a file, which may change. There are three ways to say which
// organizations are followed:
//
//   - One: --zuliprc, or none, with the variables ZULIP_EMAIL and so on. No file is read.
//   - Several --zuliprc: each is an organization, named by its site, and all other options
//     hold for all of them.
//   - --config FILE: each section [realm "NAME"] is one; see file.go.
//
// What holds for the process is in the flag, else the variable, else the file. What holds
// for a realm is in its own section, else the flag, the variable, [stream] or [queue].
// So a flag about realms is the default of all.
//
// It is made once for each run of the program. Its methods are not for several goroutines
// at a time.
type settings struct {
	config  *option            // --config
	options []*option          // it, and those of the command, which know the words of the command line
	given   map[string]*option // the same by their names
	last    *reading           // the last one, good or not
}

// newSettings takes the options of a command, which are those of [Config] or some of them.
func newSettings(options []*option) *settings {
	s := &settings{given: map[string]*option{}}
	s.config = opt(catFile, "config", "`FILE` with all organizations to follow, and other options besides: see "+
		"`zulip-nats config --help`", "", func(string) error { return nil })
	s.options = append([]*option{s.config}, options...)
	for _, o := range s.options {
		s.given[o.Name] = o
	}
	return s
}

// reading is what came of one look at everything.
type reading struct {
	c     *Config
	file  *configFile // nil: none is named
	wrong complaints
	bad   map[string]bool // options with a word that is wrong, wherever it stands

	process map[string]origin   // where each setting of c is from, by the option's name
	realms  []map[string]origin // the same for each of c.Realms
}

// origin is a word that was given for an option, and by whom.
type origin struct {
	word string
	from string // --max-age, ZULIP_NATS_MAX_AGE, or acme.ini:12
	line int    // of the file, 0 if it is from elsewhere
}

// read looks at everything anew: the file, and what it names. The Config is new each time,
// with all realms complete. The error joins all complaints, and its exit code is 78 if the
// file or a zuliprc is at fault, 2 if only the command line or a variable is.
//
// That a zuliprc or a key_file cannot be read, or has no account in it, is no complaint
// where the realm has a name: it is the trouble of that realm alone, and may pass.
func (s *settings) read() (*Config, error) {
	r := &reading{bad: map[string]bool{}}
	s.last = r
	path, source, err := s.config.word()
	switch rcs := s.zuliprcs(); {
	case err != nil:
		return nil, err
	case source == "" && len(rcs) < 2:
		return s.readOne(r)
	case source == "":
		s.readSeveral(r, rcs)
	default:
		r.file = readConfigFile(path)
		s.readFile(r)
	}
	if err := r.wrong.join(); err != nil {
		return nil, err
	}
	return r.c, nil
}

// zuliprcs are those that the command line names.
func (s *settings) zuliprcs() []string { return s.given["zuliprc"].given.all }

// several says whether the last reading was not about one organization without a file.
func (s *settings) several() bool {
	return s.last != nil && (s.last.file != nil || len(s.zuliprcs()) > 1)
}

// files are what the last reading was made of, and what another one should follow a change
// of: the file, each zuliprc, and the files of keys. They may be there or not.
func (s *settings) files() (files []string) {
	if s.last == nil {
		return nil
	}
	if s.last.file != nil {
		files = append(files, s.last.file.path)
	}
	if s.last.c != nil {
		for _, r := range s.last.c.Realms {
			files = append(files, r.Account.Files()...)
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// unusedVariables are those that are set and would say who we are, if there were one
// account only.
func (s *settings) unusedVariables() (names []string) {
	if !s.several() {
		return nil
	}
	for _, name := range []string{"ZULIP_CONFIG", "ZULIP_EMAIL", "ZULIP_API_KEY", "ZULIP_API_KEY_FILE", "ZULIP_SITE"} {
		if os.Getenv(name) != "" {
			names = append(names, name)
		}
	}
	return names
}

// warn says what is set and not used.
func (s *settings) warn(log zerolog.Logger) {
	if unused := s.unusedVariables(); len(unused) > 0 {
		logevent.VariablesUnused.Warn(log).
			Msgf("--config or several --zuliprc say which accounts there are, and these variables can stand for none of "+
				"them: %s; they are not used, so unset them", strings.Join(unused, ", "))
	}
}

// fresh is a new Config with its options. They know the words of the command line as far
// as the command has such an option.
func (s *settings) fresh() (*Config, []*option) {
	c := defaults()
	options := c.options()
	for _, o := range options {
		if g := s.given[o.Name]; g != nil {
			o.given = g.given
		}
	}
	return &c, options
}

// readOne is for one organization and no file.
func (s *settings) readOne(r *reading) (*Config, error) {
	c, all := s.fresh()
	options := slices.DeleteFunc(slices.Clone(all), func(o *option) bool { return s.given[o.Name] == nil })
	r.c, r.process = c, map[string]origin{}
	if err := errors.Join(parse(options), c.check()); err != nil {
		return nil, err
	}
	for _, o := range options {
		if word, from, err := o.word(); err == nil && from != "" {
			r.process[o.Name] = origin{word: word, from: from}
		}
	}
	r.realms = []map[string]origin{r.process}
	return c, nil
}

// outer takes the words of the command line and of variables, and complains of those that
// are wrong. forbidden are options that may not be there, with why.
func (s *settings) outer(r *reading, forbidden map[string]string) map[string]origin {
	words := map[string]origin{}
	_, options := s.fresh()
	for _, o := range options {
		why, never := forbidden[o.Name]
		if s.given[o.Name] == nil || o.Name == "zuliprc" && !never {
			continue
		}
		word, from, err := o.word()
		switch {
		case err != nil:
			r.wrong.add(0, err)
		case from == "":
		case never:
			r.wrong.add(0, usageErrorf("%s (or %s): %s", from, o.other(from), why))
		default:
			words[o.Name] = origin{word: word, from: from}
			if err := o.take(word, from); err != nil {
				r.wrong.add(0, err)
				r.bad[o.Name] = true
			}
		}
	}
	return words
}

// readSeveral is for several --zuliprc.
func (s *settings) readSeveral(r *reading, paths []string) {
	const why = "it is for one organization, and several --zuliprc are given: write a file with a section [realm \"NAME\"] for " +
		"each, and name it with --config"
	outer := s.outer(r, map[string]string{"realm": why, "moved-from": why})
	s.process(r, outer, nil)
	for _, path := range paths {
		where := "--zuliprc " + shownPath(path)
		realm, origins := s.realm(outer, nil, nil)
		realm.Where, realm.Account.File, realm.Account.Alone = where, path, true
		origins["zuliprc"] = origin{word: path, from: "--zuliprc"}
		account, err := poller.LoadAccount(realm.Account)
		if err != nil {
			r.wrong.add(0, err)
			continue
		}
		name, err := realmOf("", account.Site)
		if err != nil {
			r.wrong.add(0, configErrorf("%s: its site gives no name for the realm that a NATS subject can hold: name it "+
				"yourself, in a file with a section [realm \"NAME\"], and name that with --config", where))
			continue
		}
		realm.Name, realm.who = name.String(), account.Email+" "+account.Site
		for _, other := range r.c.Realms {
			switch {
			case other.who == realm.who:
				r.wrong.add(0, configErrorf("%s: its account is that of %s too: leave one of the two out", where, other.Where))
			case other.Name == realm.Name:
				r.wrong.add(0, configErrorf("%s: its site gives the realm's name %s, as that of %s does: name the two "+
					"yourself, in a file with sections [realm \"NAME\"], and name that with --config", where, realm.Name,
					other.Where))
			}
		}
		r.c.Realms, r.realms = append(r.c.Realms, realm), append(r.realms, origins)
	}
	s.check(r, outer)
}

// readFile is for r.file.
func (s *settings) readFile(r *reading) {
	f := r.file
	const why = "it is for one organization, and --config (ZULIP_NATS_CONFIG) names a file with all of them: "
	outer := s.outer(r, map[string]string{
		"zuliprc":    why + "write zuliprc = FILE into a section [realm \"NAME\"] of the file, or leave the file out",
		"realm":      why + "the file has the name of each in the head of its section, [realm \"NAME\"]",
		"moved-from": why + "write moved-from = URL into its section [realm \"NAME\"] of the file",
	})
	f.values(r.bad)
	shared := map[string]origin{}
	for _, sec := range f.sections {
		if sec.kind != "realm" {
			maps.Copy(shared, f.origins(sec))
		}
	}
	s.process(r, outer, shared)
	for _, sec := range f.sections {
		if sec.kind != "realm" {
			continue
		}
		realm, origins := s.realm(outer, shared, f.origins(sec))
		realm.Name, realm.Where = sec.realm, fmt.Sprintf("%s:%d", f.shown, sec.line)
		for name, w := range f.origins(sec) {
			if optionsByName[name] == nil || name == "zuliprc" { // of the account
				origins[name] = w
			}
		}
		f.account(sec, &realm)
		for _, other := range r.c.Realms {
			if realm.who != "" && other.who == realm.who {
				f.complain(sec.line, "[%s] has the account of [realm %q] (line %d): leave one of the two out, or correct its "+
					"account", sec.title(), other.Name, f.section(other.Name).line)
			}
		}
		r.c.Realms, r.realms = append(r.c.Realms, realm), append(r.realms, origins)
	}
	if len(r.c.Realms) == 0 && len(f.wrong) == 0 {
		f.complain(0, "there is no organization in it: write a section [realm \"NAME\"] for each, with zuliprc = FILE")
	}
	s.check(r, outer)
	r.wrong = append(r.wrong, f.wrong...)
}

// process fills c with what holds for the process, and no realm.
func (s *settings) process(r *reading, outer, shared map[string]origin) {
	c, options := s.fresh()
	r.c, r.process = c, choose(options, outer, shared)
	c.Realms = nil
}

// realm is one realm, without its account and its name.
func (s *settings) realm(outer, shared, own map[string]origin) (RealmConfig, map[string]origin) {
	c, options := s.fresh()
	origins := choose(options, own, outer, shared)
	return c.Realms[0], origins
}

// choose gives each option the first word that there is for it. Words that are wrong were
// told of already.
func choose(options []*option, places ...map[string]origin) map[string]origin {
	chosen := map[string]origin{}
	for _, o := range options {
		for _, place := range places {
			if w, there := place[o.Name]; there {
				if o.set(w.word) == nil {
					chosen[o.Name] = w
				}
				break
			}
		}
	}
	return chosen
}

// values complains of what is no value of its option, and adds those options to bad.
func (f *configFile) values(bad map[string]bool) {
	for _, sec := range f.sections {
		for name, e := range sec.keys {
			// Each on its own: what a port is worth must not depend on whether there is a URL.
			c := defaults()
			options := c.options()
			i := slices.IndexFunc(options, func(o *option) bool { return o.Name == name })
			if i < 0 || name == "zuliprc" { // of the account
				continue
			}
			o := options[i]
			if err := o.set(e.value); err != nil {
				bad[name] = true
				if redact.Text(e.value) != e.value {
					err = errLikeKey
				}
				text := err.Error()
				if e.cut {
					text += "; what begins with # or ; behind it was taken for a comment: if it belongs to the value, put that " +
						"between backquotes (`)"
				}
				f.complain(e.line, "%s: %s", name, text)
			}
		}
	}
}

// section is the one of a realm that is known to have one.
func (f *configFile) section(realm string) *section {
	return f.sections[slices.IndexFunc(f.sections, func(s *section) bool { return s.kind == "realm" && s.realm == realm })]
}

// origins are the words of a section.
func (f *configFile) origins(sec *section) map[string]origin {
	words := map[string]origin{}
	for name, e := range sec.keys {
		words[name] = origin{word: e.value, from: fmt.Sprintf("%s:%d", f.shown, e.line), line: e.line}
	}
	return words
}

// account fills in the account of a realm, and complains if it is none.
func (f *configFile) account(sec *section, r *RealmConfig) {
	r.Account.Alone = true
	inline, where := map[string]string{}, map[string]string{"": f.at(sec.line) + ": [" + sec.title() + "]"}
	lines := map[string]int{}
	for _, name := range poller.InlineNames() {
		if e, there := sec.keys[name]; there {
			inline[name], where[name], lines[name] = e.value, f.at(e.line), e.line
		}
	}
	rc, named := sec.keys["zuliprc"]
	one := slices.Sorted(maps.Keys(inline)) // the complaint is about the first of them
	slices.SortStableFunc(one, func(a, b string) int { return cmp.Compare(lines[a], lines[b]) })
	switch {
	case named && len(inline) > 0:
		f.complain(lines[one[0]], "%s stands beside zuliprc (line %d), and an account stands in one place: leave one of the "+
			"two out", one[0], rc.line)
	case named:
		r.Account.File = rc.value
		if account, err := poller.LoadAccount(r.Account); err == nil {
			r.who = account.Email + " " + account.Site
		}
	default:
		f.inline(sec, r, inline, where, lines)
	}
}

// inline is for an account that stands in the file itself.
func (f *configFile) inline(sec *section, r *RealmConfig, values, where map[string]string, lines map[string]int) {
	var missing []string
	for _, name := range []string{"email", "key", "site"} {
		if values[name] == "" && (name != "key" || values["key_file"] == "") {
			missing = append(missing, name)
		}
	}
	r.Account.Inline, r.Account.Where = values, where
	switch {
	case len(values) == 0:
		f.complain(sec.line, "[%s] has no account: write zuliprc = FILE below it, or email, key (or key_file) and site",
			sec.title())
	case len(missing) > 0:
		f.complain(sec.line, "[%s] has no %s: an account has email, key (or key_file) and site", sec.title(),
			strings.Join(missing, " and no "))
	case values["key"] != "" && values["key_file"] != "":
		f.complain(max(lines["key"], lines["key_file"]), "key and key_file are two ways to say the same: leave one of the two out")
	case values["client_cert_key"] != "" && values["client_cert"] == "":
		f.complain(lines["client_cert_key"], "client_cert_key is given, but no client_cert that it belongs to")
	default:
		// Whether the values are good is looked at here. What other files hold may change.
		alone := r.Account
		alone.Getenv = func(string) string { return "" }
		alone.Inline = map[string]string{"email": values["email"], "site": values["site"],
			"key": cmp.Or(values["key"], strings.Repeat("k", 32))}
		account, err := poller.LoadAccount(alone)
		if err == nil {
			r.who = account.Email + " " + account.Site
			return
		}
		for name, place := range where {
			if name != "" && strings.HasPrefix(err.Error(), place+": ") {
				f.wrong.add(lines[name], configError{err})
				return
			}
		}
		f.wrong.add(sec.line, configError{err})
	}
}

// check says what is wrong with settings that are right one by one. What a complaint is
// about is known by the options that it names: where one of them is from the file, it is
// the file's. Where one of them has a wrong word, that was said already, and what it would
// be is not known.
func (s *settings) check(r *reading, outer map[string]origin) {
	tell := func(err error, places ...map[string]origin) {
		names := mentioned.FindAllStringSubmatch(err.Error(), -1)
		if slices.ContainsFunc(names, func(m []string) bool { return r.bad[m[1]] }) {
			return
		}
		for _, origins := range places {
			line := 0
			for _, m := range names {
				line = max(line, origins[m[1]].line)
			}
			if line > 0 {
				r.file.complain(line, "%s", mentioned.ReplaceAllString(err.Error(), "$1"))
				return
			}
		}
		r.wrong.add(0, err)
	}
	// A context of the nats command says what the options do not, so it is looked at once
	// the options are known.
	for _, err := range r.c.checkProcess() {
		tell(err, r.process)
	}
	for i := range r.c.Realms {
		for _, err := range r.c.Realms[i].check(r.c.NATS.URL) {
			tell(err, r.own(i), r.realms[i], r.process)
		}
	}
}

// own are the words of a realm's own section.
func (r *reading) own(i int) map[string]origin {
	if r.file == nil {
		return nil
	}
	return r.file.origins(r.file.section(r.c.Realms[i].Name))
}

// mentioned are the options that a sentence names, with their variables.
var mentioned = regexp.MustCompile(`--([a-z][a-z-]*[a-z])(?: \((?:or )?[A-Z_]+\))?`)

// shownPath is the name of a file as it may be printed; a bare word is one too.
func shownPath(path string) string {
	if redact.LikeName(path) {
		return path
	}
	return redact.Path(path)
}

// absolute is a path as it may stand in a file that is somewhere else.
func absolute(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		return filepath.Join(os.Getenv("HOME"), rest)
	}
	if full, err := filepath.Abs(path); err == nil {
		return full
	}
	return path
}
