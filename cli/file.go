package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/ini.v1"

	"zulip-nats/poller"
	"zulip-nats/redact"
	"zulip-nats/subjects"
)

// The configuration file of `run --config`. It has sections, and lines `key = value`; a
// key is the option of the same name. [nats], [log] and [http] hold for the process,
// [stream] and [queue] are defaults for all realms, and each [realm "NAME"] is one
// organization.
//
// A comment begins with # or ;, on a line of its own or behind a value, with a blank
// before it. A value that has a blank and then # or ; in it, or quotes around it that
// belong to it, stands between backquotes. Everything else is taken as it stands: % and \
// mean nothing, and no value goes on in the next line.
//
// ini.v1 reads the values. It gives no numbers of lines, lets the later of two keys win,
// takes quotes away or not by what is between them, and ends at its first error. So the
// lines are looked at before: each must be of a form that can be read in one way only, and
// what is not is a complaint, and is kept from ini.v1.

// configFile is such a file, once it was read.
type configFile struct {
	path     string // as it was given
	shown    string // as it may be printed
	sections []*section
	wrong    complaints
}

// section is one section. Of two with the same name only the first is there.
type section struct {
	kind  string // one of sectionKinds
	realm string // NAME of a realm
	line  int
	keys  map[string]entry
}

// entry is a key with its value, the one that counts.
type entry struct {
	line  int
	value string
	// cut: a comment stood behind the value, or what was taken for one.
	cut bool
}

// sectionKinds are the sections that there are.
var sectionKinds = []string{"nats", "stream", "queue", "log", "http", "realm"}

// complaint is one thing that is wrong: with the file, or with the command line and
// variables, which is a usageError.
type complaint struct {
	line int // 0: none
	err  error
}

type complaints []complaint

func (l *complaints) add(line int, err error) { *l = append(*l, complaint{line, err}) }

// join makes one error of all, sorted by line, each text once. Where the file is at fault
// too, the exit code is the one for that.
func (l complaints) join() error {
	slices.SortStableFunc(l, func(a, b complaint) int { return cmp.Compare(a.line, b.line) })
	ofFile := slices.ContainsFunc(l, func(c complaint) bool { return !is[usageError](c.err) })
	var all []error
	said := map[string]bool{}
	for _, c := range l {
		if said[c.err.Error()] {
			continue
		}
		said[c.err.Error()] = true
		if ofFile && is[usageError](c.err) {
			c.err = configErrorf("%s", c.err)
		}
		all = append(all, c.err)
	}
	return errors.Join(all...)
}

// at is the place of a line, as errors have it.
func (f *configFile) at(line int) string {
	if line == 0 {
		return f.shown
	}
	return fmt.Sprintf("%s: line %d", f.shown, line)
}

// complain adds a complaint about a line; 0 is the whole file.
func (f *configFile) complain(line int, format string, v ...any) {
	f.wrong.add(line, configErrorf("%s: %s", f.at(line), fmt.Sprintf(format, v...)))
}

// mostConfig is beyond any file of ours: that of ten thousand organizations has 2 MB.
const mostConfig = 4 << 20

// readConfigFile reads the file. What is wrong with it is in wrong.
func readConfigFile(path string) *configFile {
	f := &configFile{path: path, shown: redact.Path(path)}
	if redact.LikeName(path) {
		f.shown = path
	}
	raw, mode, err := readSmall(path, mostConfig)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.complain(0, "there is no such file: --config (ZULIP_NATS_CONFIG) takes the path of the configuration file")
	case errors.Is(err, fs.ErrPermission):
		f.complain(0, "permission denied; let the user that runs this read it")
	case err != nil:
		f.complain(0, "it cannot be read: %s", redact.FileError(err))
	case len(raw) > mostConfig:
		f.complain(0, "it is larger than %d bytes, so it is another file", mostConfig)
	default:
		f.parse(raw)
		f.private(mode)
	}
	return f
}

// readSmall reads a file, and one byte more than most if it is longer.
func readSmall(path string, most int64) ([]byte, fs.FileMode, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, 0, err
	}
	if info.IsDir() {
		return nil, 0, errors.New("it is a folder")
	}
	raw, err := io.ReadAll(io.LimitReader(in, most+1))
	return raw, info.Mode(), err
}

// private complains if there is a secret in the file, and others may read it. Those of the
// file's group may: that is how a service gets a file that is root's.
func (f *configFile) private(mode fs.FileMode) {
	if runtime.GOOS == "windows" || mode.Perm()&0o007 == 0 {
		return
	}
	if line := f.firstSecret(); line > 0 {
		f.complain(0, "mode %04o, and there are secrets in it (line %d is one): everybody on this machine may read them, or "+
			"change the file: chmod 600 %s", mode.Perm(), line, f.shown)
	}
}

// firstSecret is the first line with a secret, 0 if there is none.
func (f *configFile) firstSecret() (line int) {
	for _, s := range f.sections {
		for name, e := range s.keys {
			if secretKey(name, e.value) && (line == 0 || e.line < line) {
				line = e.line
			}
		}
	}
	return line
}

// secretKey says whether the value of a key of the file must not be shown.
func secretKey(name, value string) bool {
	o := optionsByName[name]
	switch {
	case name == "key":
		return true
	case name == "nats-url": // user, password or token are in some
		return redact.URLs(value) != strings.Join(strings.FieldsFunc(value,
			func(r rune) bool { return r == ',' || unicode.IsSpace(r) }), ", ")
	}
	return o != nil && o.secret
}

// optionsByName are the options of `run`, for what they are called and belong to.
var optionsByName = func() map[string]*option {
	c := defaults()
	all := map[string]*option{}
	for _, o := range c.options() {
		all[o.Name] = o
	}
	return all
}()

// sectionsOf says in which kinds of sections an option may stand, the realm's own first.
func sectionsOf(o *option) []string {
	switch {
	case o.Name == "insecure", o.Name == "moved-from": // these say something about one organization
		return []string{"realm"}
	case o.Name == "delete-queue", o.Category == catQueue, o.Category == catLoss:
		return []string{"realm", "queue"}
	case o.Category == catStore:
		return []string{"realm", "stream"}
	case o.Category == catNATS, o.Category == catLease:
		return []string{"nats"}
	case o.Category == catLog:
		return []string{"log"}
	case o.Category == catWatch && o.Name != "show":
		return []string{"http"}
	}
	return nil // zuliprc is a key of the account, and realm the name of its section
}

// keysOf are the keys that a kind of section may have, sorted.
func keysOf(kind string) (names []string) {
	for name, o := range optionsByName {
		if slices.Contains(sectionsOf(o), kind) {
			names = append(names, name)
		}
	}
	if kind == "realm" {
		names = append(append(names, "zuliprc"), poller.InlineNames()...)
	}
	slices.Sort(names)
	return names
}

// isPath says whether the value of a key names a file or a folder.
func isPath(name, value string) bool {
	switch name {
	case "zuliprc", "key_file", "client_cert", "client_cert_key", "cert_bundle":
		return true
	case "nats-context": // or the name of one
		return strings.HasSuffix(value, ".json")
	}
	o := optionsByName[name]
	return o != nil && (o.value() == "FILE" || o.value() == "FOLDER")
}

// resolve is a path of the file as it is used: ~/ is $HOME, as with --zuliprc, and what is
// relative begins at the folder of the file. What can hardly be a path stays as it is: it
// may be a secret, and would look like a path afterwards.
func (f *configFile) resolve(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		return filepath.Join(os.Getenv("HOME"), rest)
	}
	full := filepath.Join(filepath.Dir(f.path), path)
	if _, err := os.Lstat(full); filepath.IsAbs(path) || err != nil && !redact.LikeName(path) {
		return path
	}
	return full
}

// parse reads the file's bytes.
func (f *configFile) parse(raw []byte) {
	text := strings.TrimPrefix(string(raw), "\uFEFF") // which editors on Windows write
	switch {
	case strings.HasPrefix(text, "\xFF\xFE"), strings.HasPrefix(text, "\xFE\xFF"):
		f.complain(0, "it is written in UTF-16; save it as UTF-8")
		return
	case !utf8.ValidString(text):
		valid := strings.IndexFunc(text, func(r rune) bool { return r == utf8.RuneError })
		f.complain(1+strings.Count(text[:valid], "\n"), "it is not written in UTF-8; save it again as UTF-8")
		return
	}
	lines := strings.Split(text, "\n")
	f.scan(lines)
	values, err := ini.LoadSources(ini.LoadOptions{
		IgnoreContinuation: true, IgnoreInlineComment: true, PreserveSurroundedQuote: true, KeyValueDelimiters: "=",
		ChildSectionDelimiter: "\n", // a dot in a section's name means nothing
	}, []byte(strings.Join(lines, "\n")))
	if err != nil { // which may quote the file
		f.complain(0, "it cannot be read as a file of sections and lines `key = value`")
		f.sections = nil
		return
	}
	for _, s := range f.sections {
		from := values.Section(s.title())
		for name, e := range s.keys {
			// Value, and not String: that one follows %(name)s, in circles without end.
			value := from.Key(name).Value()
			if !e.quoted() {
				value, e.cut = cutComment(strings.TrimSpace(value))
			}
			if value == "" {
				f.complain(e.line, noValue, name)
				delete(s.keys, name)
				continue
			}
			if e.value = value; isPath(name, value) {
				e.value = f.resolve(value)
			}
			s.keys[name] = e
		}
	}
}

const noValue = "%s has no value: write one behind the =, or take the line away"

// quoted says whether the value stands between backquotes, as scan has seen it.
func (e entry) quoted() bool { return strings.HasPrefix(e.value, "`") }

// title is what stands between the brackets.
func (s *section) title() string {
	if s.kind == "realm" {
		return `realm "` + s.realm + `"`
	}
	return s.kind
}

var (
	realmHead = regexp.MustCompile(`^realm\s+"([^"]*)"$`)
	keyForm   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,60}$`)
)

// scan finds where the sections and keys stand, and complains of what is none. In the end
// lines has only what ini.v1 reads in the one way that is meant; sections have their keys,
// with values as they stand.
func (f *configFile) scan(lines []string) {
	var now *section // nil: keys are not looked at, since there is a complaint about the section
	begun := false
	for i, line := range lines {
		n := i + 1
		line = strings.TrimSpace(strings.TrimSuffix(line, "\r"))
		lines[i] = ""
		switch {
		case line == "", line[0] == '#', line[0] == ';':
			continue
		case strings.ContainsFunc(line, unreadable):
			f.complain(n, "there is a control character in this line: write it again")
			continue
		case line[0] == '[':
			begun = true
			if now = f.head(n, line); now != nil {
				lines[i] = "[" + now.title() + "]"
			}
			continue
		}
		name, value, ok := f.split(n, line)
		switch {
		case !ok:
			continue
		case !begun:
			f.complain(n, "%s stands above the first section: write the head of its section above it, such as %s", shownKey(name),
				sectionFor(name))
			continue
		case now == nil, !f.known(n, now, name), !f.plain(n, name, value):
			continue
		}
		if other, there := now.keys[name]; there {
			f.complain(n, "%s stands in line %d already: leave one of the two out", name, other.line)
			continue
		}
		now.keys[name] = entry{line: n, value: value}
		lines[i] = name + " = " + value
	}
}

// unreadable says whether a character has no place in the file.
func unreadable(r rune) bool { return unicode.IsControl(r) && r != '\t' }

// head reads the head of a section. It is nil if there is a complaint about it.
func (f *configFile) head(n int, line string) *section {
	text, _ := cutComment(line)
	end := strings.LastIndexByte(text, ']')
	if end != len(text)-1 {
		f.complain(n, "the section does not end with ]: write it like [nats] or [realm \"acme\"], on a line of its own")
		return nil
	}
	title := strings.TrimSpace(text[1:end])
	s := &section{kind: title, line: n, keys: map[string]entry{}}
	if m := realmHead.FindStringSubmatch(title); m != nil {
		s.kind, s.realm = "realm", m[1]
		if _, err := subjects.ParseRealm(s.realm); err != nil || redact.Secret(s.realm) {
			if err == nil || redact.Text(s.realm) != s.realm {
				err = errors.New("what stands in the quotes looks like a key, so it is not shown; a realm's name belongs there")
			}
			f.complain(n, "%s", err)
			return nil
		}
	} else if rest, _ := strings.CutPrefix(title, "realm"); title == "realm" || rest != title && rest[0] <= '@' {
		f.complain(n, "a realm's name stands in quotes in the head of its section: [realm \"acme\"]")
		return nil
	} else if !slices.Contains(sectionKinds, title) {
		what := "there is no such section"
		word, _, _ := strings.Cut(title, " ")
		if keyForm.MatchString(title) {
			what = fmt.Sprintf("there is no section [%s]", redact.Text(title))
		}
		if like := near(strings.ToLower(word), sectionKinds); like == "realm" {
			what += " (is [realm \"NAME\"] meant?)"
		} else if like != "" {
			what += " (is [" + like + "] meant?)"
		}
		if title == "api" {
			what += ", which is one of a zuliprc: name that by `zuliprc = FILE` in a section [realm \"NAME\"]"
			f.complain(n, "%s", what)
			return nil
		}
		f.complain(n, "%s; there are [nats], [stream], [queue], [log], [http] and [realm \"NAME\"]", what)
		return nil
	}
	for _, other := range f.sections {
		if other.title() == s.title() {
			f.complain(n, "[%s] stands in line %d already: %s", s.title(), other.line,
				map[bool]string{true: "give one of the two another name, or leave it out", false: "put the two together"}[s.kind ==
					"realm"])
			return nil
		}
	}
	f.sections = append(f.sections, s)
	return s
}

// split parts a line into key and value.
func (f *configFile) split(n int, line string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(line, "=")
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if ok && keyForm.MatchString(name) {
		return name, value, true
	}
	word, _ := cutComment(line)
	word, rest, colon := strings.Cut(word, ":")
	word, rest = strings.TrimSpace(word), strings.TrimSpace(rest)
	o := optionsByName[word]
	switch {
	case colon && keyForm.MatchString(word) && (o != nil || slices.Contains(keysOf("realm"), word)):
		f.complain(n, "write %s = and the value, not %s: and the value", word, word)
	case !colon && rest == "" && o != nil && o.isBool:
		f.complain(n, "%s has no value: write %s = true", word, word)
	case !colon && rest == "" && (o != nil || slices.Contains(keysOf("realm"), word)):
		f.complain(n, "%s has no value: write %s = and the value", word, word)
	default:
		f.complain(n, "this is neither a section, nor `key = value`, nor a comment, which begins with # or ;")
	}
	return "", "", false
}

// plain says whether a value can be read in one way only.
func (f *configFile) plain(n int, name, value string) bool {
	const backquotes = "between backquotes (`) it is taken as it stands"
	bad := func(format string, v ...any) bool {
		f.complain(n, "%s: %s", name, fmt.Sprintf(format, v...))
		return false
	}
	if strings.HasPrefix(value, "`") {
		end := strings.LastIndexByte(value, '`')
		behind := value[end+1:]
		comment, cut := cutComment("x" + behind)
		inner, innerCut := cutComment("x" + value[max(1, strings.IndexByte(value[1:], '`')+2):])
		switch {
		case end == 0:
			return bad("a backquote begins the value, and none ends it in the same line")
		case behind != "" && (!cut || comment != "x"):
			return bad("something stands behind the backquote that ends the value: only a comment may, with a blank before")
		case strings.IndexByte(value[1:], '`')+1 < end && innerCut && inner == "x":
			return bad("there is a backquote in the comment behind the value, so that it is not clear where the value ends: " +
				"put the comment on a line of its own")
		}
		return true
	}
	word, cut := cutComment(value)
	switch {
	case value == "":
		f.complain(n, noValue, name)
		return false
	case word == "":
		f.complain(n, "%s has no value, since # and ; begin a comment: write one; if the mark belongs to it, %s", name, backquotes)
		return false
	}
	first, last := word[0], word[len(word)-1]
	switch {
	case word == hidden:
		return bad("`zulip-nats config` has hidden the value here: write it")
	case strings.HasPrefix(word, `"""`):
		return bad("three quotes mean nothing here, and no value goes on in the next line; " + backquotes)
	case (first == '"' || first == '\'') && (cut || last == first):
		return bad("the value stands in quotes, which mean nothing here: take them away; if they belong to it, " + backquotes)
	case cut && secretKey(name, word):
		return bad("a # or ; with a blank before it begins a comment, and behind a secret it may be a part of it: put the " +
			"comment on a line of its own, or the secret between backquotes (`)")
	}
	return true
}

// cutComment cuts off the comment behind a value: it begins with the first # or ; that has
// a blank before it, or nothing. cut says whether there is one.
func cutComment(value string) (before string, cut bool) {
	blank := true
	for i, r := range value {
		if blank && (r == '#' || r == ';') {
			return strings.TrimSpace(value[:i]), true
		}
		blank = unicode.IsSpace(r)
	}
	return value, false
}

// known says whether a section has such a key, and complains if not.
func (f *configFile) known(n int, s *section, name string) bool {
	here := keysOf(s.kind)
	if slices.Contains(here, name) {
		return true
	}
	plain := strings.ReplaceAll(strings.ToLower(name), "_", "-")
	o := optionsByName[plain]
	head := "[" + s.title() + "]"
	switch {
	case s.kind == "realm" && (plain == "realm" || plain == "name"):
		f.complain(n, "%s is no key: the realm's name is the one in the head of its section, %s", shownKey(name), head)
	case slices.Contains(here, plain):
		f.complain(n, "there is no key %s in %s (is %s meant?)", name, head, plain)
	case slices.Contains(here, s.kind+"-"+plain):
		f.complain(n, "there is no key %s in %s (is %s-%s meant?)", name, head, s.kind, plain)
	case o != nil && len(sectionsOf(o)) > 0, slices.Contains(keysOf("realm"), name), slices.Contains(keysOf("realm"), plain):
		f.complain(n, "%s does not belong to %s: write it below %s", name, head, sectionFor(name))
	case o != nil && plain != "realm":
		f.complain(n, "%s is no key of the file: it is an option of the command line only", name)
	default:
		what := fmt.Sprintf("there is no key %s in %s", shownKey(name), head)
		var others []string
		for _, kind := range sectionKinds {
			others = append(others, keysOf(kind)...)
		}
		if like := cmp.Or(near(plain, here), near(s.kind+"-"+plain, here)); like != "" {
			what += " (is " + like + " meant?)"
		} else if like := near(plain, others); like != "" {
			what += " (is " + like + " meant? It stands below " + sectionFor(like) + ")"
		} else {
			what += "; a key has the name of an option, and `zulip-nats run --help` lists those"
		}
		f.complain(n, "%s", what)
	}
	return false
}

// shownKey is what stands in the place of a key, as it may be printed.
func shownKey(name string) string { return redact.Text(name) }

// sectionFor names the section that a key belongs to.
func sectionFor(name string) string {
	plain := strings.ReplaceAll(strings.ToLower(name), "_", "-")
	o := optionsByName[plain]
	if o == nil || len(sectionsOf(o)) == 0 {
		return `[realm "NAME"]`
	}
	if kinds := sectionsOf(o); len(kinds) == 2 {
		return "[" + kinds[1] + `], for all realms, or [realm "NAME"]`
	} else if kinds[0] != "realm" {
		return "[" + kinds[0] + "]"
	}
	return `[realm "NAME"]`
}
