package poller

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/ini.v1"

	"zulip-nats/redact"
)

// Account is who we are to Zulip, and how its server is known to be the right one.
type Account struct {
	Email, Key    string
	Site          string // base URL with scheme, without trailing slash and /api, scheme and host in lower case
	CertBundle    string // PEM file of the authorities to trust instead of the system's
	ClientCert    string // PEM file of our certificate
	ClientCertKey string // PEM file of its key, if it is not in the same file
	Insecure      bool   // believe any certificate
}

// Source says where an account comes from. The rules are those of Zulip's Python client
// (python-zulip-api, zulip/__init__.py, class Client), so that a zuliprc and an
// environment that work there work here: each value comes from the environment, else from
// the file. Beyond that, the key may stand in a file of its own that ZULIP_API_KEY_FILE
// names.
//
// Where several accounts are read, the variables can stand for none of them: see Alone and
// Inline.
type Source struct {
	File     string              // the argument, ~ allowed; empty: that of ZULIP_CONFIG, else ~/.zuliprc
	Insecure *bool               // the argument; nil: not given
	Getenv   func(string) string // nil: os.Getenv. An empty variable counts as not set

	// Alone leaves ZULIP_EMAIL, ZULIP_API_KEY, ZULIP_API_KEY_FILE and ZULIP_SITE alone: the
	// account stands in the file. The variables about certificates hold for it too.
	Alone bool

	// Inline is the account itself, for one that stands in a file of ours and not in a
	// zuliprc: values by the names of a zuliprc's keys, email, key, site, client_cert,
	// client_cert_key and cert_bundle, taken as they are, without % and quotes. key_file in
	// the place of key names a file with the key, which is read each time. With Inline no
	// zuliprc is read, Alone is as good as set, and a value comes before the variable about
	// certificates. nil: there is a zuliprc.
	Inline map[string]string
	// Where says where each value of Inline stands, such as "acme.ini: line 7", and under the
	// empty name where all of them belong. It is for sentences only.
	Where map[string]string
}

// inlineNames are the values that Inline may have.
var inlineNames = []string{"email", "key", "key_file", "site", "client_cert", "client_cert_key", "cert_bundle"}

// InlineNames are the names of the values that an account in [Source.Inline] may have.
func InlineNames() []string { return slices.Clone(inlineNames) }

func (src Source) getenv() func(string) string {
	if src.Getenv != nil {
		return src.Getenv
	}
	return os.Getenv
}

// Path is the zuliprc that LoadAccount reads, whether it is there or not; empty for an
// account that is inline. It may be anything that somebody put there, a key too: see
// package redact before it is printed.
func (src Source) Path() string {
	if src.Inline != nil {
		return ""
	}
	path, _ := src.path(src.getenv())
	return path
}

// Files are the files that hold the account, whether they are there or not: when one of
// them changes, LoadAccount may give another account. What holds for the names of [Path]
// holds for these.
func (src Source) Files() (files []string) {
	getenv := src.getenv()
	if path := src.Path(); path != "" {
		files = append(files, path)
	}
	keyFile := src.Inline["key_file"]
	if src.Inline == nil && !src.Alone && getenv("ZULIP_API_KEY") == "" {
		keyFile = getenv("ZULIP_API_KEY_FILE")
	}
	if keyFile != "" {
		files = append(files, keyFile)
	}
	if info, err := os.Stat(src.Path()); src.Inline == nil && err == nil && !info.Mode().IsRegular() {
		return files // it can be read only once
	}
	a, _ := src.load(map[string]string{}) // with the files that it names, be they there or not
	for _, file := range []string{a.CertBundle, a.ClientCert, a.ClientCertKey} {
		if file != "" {
			files = append(files, file)
		}
	}
	return files
}

const download = "download it from Zulip's settings of the bot, or of your account"

// mostZuliprc is far beyond any zuliprc; what is larger is another file.
const mostZuliprc = 64 << 10

// LoadAccount reads an account. Every error is a *ConfigError that names the file and the
// key, or the variable, and quotes no value: a key may stand where another value should.
func LoadAccount(src Source) (Account, error) {
	a, _, err := src.Load()
	return a, err
}

// Load is [LoadAccount], and says besides from where each value is, by the names of a
// zuliprc's keys: "zuliprc /etc/zuliprc: email", or "the variable ZULIP_EMAIL".
func (src Source) Load() (Account, map[string]string, error) {
	from := map[string]string{}
	a, err := src.load(from)
	if err != nil {
		return Account{}, nil, err
	}
	return a, from, nil
}

// load is Load. With the error that a certificate's file cannot be read it gives the account
// too.
func (src Source) load(from map[string]string) (Account, error) {
	getenv := src.getenv()
	path, named := src.path(getenv)
	file, missing := &zuliprc{path: path}, false
	if src.Inline == nil {
		var err error
		file, err = readZuliprc(path)
		if missing = errors.Is(err, fs.ErrNotExist); err != nil && !missing {
			return Account{}, err
		}
	}
	alone := src.Alone || src.Inline != nil
	orSet := func(variables string) string { // the other way to say it
		if alone {
			return ""
		}
		return ", or set " + variables
	}

	var a Account
	var err error
	var unset []string // of the three variables with which no file is needed
	for _, v := range []struct {
		name, env string
		into      *string
	}{
		{"email", "ZULIP_EMAIL", &a.Email},
		{"key", "ZULIP_API_KEY", &a.Key},
		{"site", "ZULIP_SITE", &a.Site},
		{"client_cert", "ZULIP_CERT", &a.ClientCert},
		{"client_cert_key", "ZULIP_CERT_KEY", &a.ClientCertKey},
		{"cert_bundle", "ZULIP_CERT_BUNDLE", &a.CertBundle},
	} {
		needed := v.name == "email" || v.name == "key" || v.name == "site"
		var env string
		if !needed || !alone {
			env = getenv(v.env)
		}
		if path := getenv(v.env + "_FILE"); v.name == "key" && env == "" && path != "" && !alone {
			if env, err = redact.ReadSecret(path); err != nil {
				return Account{}, configErrorf("the variable %s_FILE: %v", v.env, err)
			}
		}
		if src.Inline != nil {
			if *v.into, from[v.name], err = src.inline(v.name); err != nil {
				return Account{}, err
			}
			switch {
			case *v.into != "": // who read the file has looked at its quotes
				continue
			case needed:
				return Account{}, configErrorf("%s has no %q: write it there, or name a zuliprc", src.Where[""], v.name)
			}
		}
		if *v.into, from[v.name] = env, "the variable "+v.env; env == "" {
			if *v.into, err = file.get(v.name); err != nil {
				return Account{}, err
			}
			from[v.name] = fmt.Sprintf("zuliprc %s: %s", file.shown(), v.name)
		}
		if quote := (*v.into + " ")[0]; (quote == '"' || quote == '\'') && strings.HasSuffix(*v.into, string(quote)) {
			return Account{}, configErrorf("%s stands in quotes, which do not belong there: take them away",
				from[v.name])
		}
		if env == "" && needed {
			unset = append(unset, v.env)
		}
	}
	if a.Insecure, err = src.insecure(getenv, file); err != nil {
		return Account{}, err
	}

	lacks := strings.Join(unset, ", ")
	switch {
	case len(unset) == 0: // the account needs no file
	case missing && named:
		return Account{}, &ConfigError{fmt.Sprintf("there is no zuliprc %s; give the path of the file and not what "+
			"is in it: %s%s", file.shown(), download, orSet(lacks)), fs.ErrNotExist}
	case missing && len(unset) < 3:
		return Account{}, &ConfigError{fmt.Sprintf("ZULIP_EMAIL, ZULIP_API_KEY and ZULIP_SITE stand for a zuliprc "+
			"only together: set %s too, or give the path of a zuliprc as --zuliprc or ZULIP_CONFIG", lacks),
			fs.ErrNotExist}
	case missing:
		return Account{}, &ConfigError{fmt.Sprintf("no zuliprc is named, and there is none at %s: %s, and give its "+
			"path as --zuliprc or ZULIP_CONFIG, or set %s", file.shown(), download, lacks), fs.ErrNotExist}
	case !file.hasAPI:
		return Account{}, configErrorf("zuliprc %s: there is no section [api]; it should be the line above email, "+
			"key and site: %s again", file.shown(), download)
	}
	for _, v := range []struct{ name, value, env string }{
		{"email", a.Email, "ZULIP_EMAIL"}, {"key", a.Key, "ZULIP_API_KEY"}, {"site", a.Site, "ZULIP_SITE"},
	} {
		if v.value == "" {
			return Account{}, configErrorf("zuliprc %s: [api] has no %q; %s again%s", file.shown(), v.name,
				download, orSet(v.env))
		}
	}
	if what := wrongKey(a.Key); what != "" {
		return Account{}, configErrorf("%s is no API key, which is 32 letters and digits: %s; %s again", from["key"],
			what, download)
	}
	if strings.ContainsFunc(a.Email,
		func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == ':' }) {
		return Account{}, configErrorf("%s is no e-mail address: there is a blank, a colon or a line break in it",
			from["email"])
	}
	if !strings.Contains(a.Email, "@") {
		return Account{}, configErrorf("%s is no e-mail address: there is no @ in it", from["email"])
	}
	var what string
	if a.Site, what = normalSite(a.Site); what != "" {
		return Account{}, configErrorf("%s is no address of a server such as https://chat.example.com: %s",
			from["site"], what)
	}
	if a.shown() == "" {
		return Account{}, configErrorf("%s is no address of a server such as https://chat.example.com: it looks like "+
			"a key, and is not shown",
			from["site"])
	}
	if a.ClientCert == "" && a.ClientCertKey != "" {
		return Account{}, configErrorf("%s is given, but no client_cert that it belongs to", from["client_cert_key"])
	}
	for _, v := range []struct{ name, file string }{
		{"cert_bundle", a.CertBundle}, {"client_cert", a.ClientCert}, {"client_cert_key", a.ClientCertKey},
	} {
		if v.file == "" || v.name == "cert_bundle" && a.Insecure {
			continue
		}
		if info, err := os.Stat(v.file); err != nil {
			return a, &ConfigError{fmt.Sprintf("%s names the file %s, which cannot be read: %s", from[v.name],
				redact.Path(v.file),
				redact.FileError(err)), err}
		} else if info.IsDir() {
			return Account{}, configErrorf("%s names %s, a folder, not a file", from[v.name], redact.Path(v.file))
		}
	}
	return a, nil
}

// inline is a value of the account that is inline, and where it stands.
func (src Source) inline(name string) (value, where string, err error) {
	at := func(name string) string { return src.Where[name] + ": " + name }
	value = src.Inline[name]
	if path := src.Inline["key_file"]; name == "key" && value == "" && path != "" {
		if value, err = redact.ReadSecret(path); err != nil {
			return "", "", configErrorf("%s: %v", at("key_file"), err)
		}
		return value, at("key_file") + " names a file, and what is in it", nil
	}
	return value, at(name), nil
}

// path is the zuliprc to read, and whether anybody named it.
func (src Source) path(getenv func(string) string) (path string, named bool) {
	home := getenv("HOME")
	if p := src.File; p != "" {
		if p == "~" || strings.HasPrefix(p, "~/") {
			p = filepath.Join(home, p[1:])
		}
		return p, true
	}
	if p := getenv("ZULIP_CONFIG"); p != "" {
		return p, true // no ~ here: a shell has put it in already
	}
	return filepath.Join(home, ".zuliprc"), false
}

// insecure takes only the words true and false, so that nobody gives up security by a
// slip.
func (src Source) insecure(getenv func(string) string, file *zuliprc) (bool, error) {
	if src.Insecure != nil {
		return *src.Insecure, nil
	}
	word, where := getenv("ZULIP_ALLOW_INSECURE"), "the variable ZULIP_ALLOW_INSECURE"
	if word == "" {
		var err error
		if word, err = file.get("insecure"); err != nil {
			return false, err
		}
		where = fmt.Sprintf("zuliprc %s: insecure", file.shown())
		if _, given := file.raw("insecure"); !given {
			return false, nil
		}
	}
	switch strings.ToLower(word) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, configErrorf("%s must be the word true or false", where)
}

// wrongKey says why key has not the form of an API key (zerver/lib/utils.py,
// has_api_key_format); empty if it has.
func wrongKey(key string) string {
	if n := utf8.RuneCountInString(key); n != 32 {
		return fmt.Sprintf("it is %d characters", n)
	}
	if strings.ContainsFunc(key, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}) {
		return "there are other characters in it"
	}
	return ""
}

// normalSite makes the base URL of what people write as site: localhost means http,
// anything else without a scheme https, and /api at the end is left out. what says why it
// cannot be.
func normalSite(site string) (base, what string) {
	site = strings.TrimSpace(site)
	scheme, rest, ok := strings.Cut(site, "://")
	if !ok {
		scheme, rest = "https", site
		if strings.HasPrefix(site, "localhost") {
			scheme = "http"
		}
	}
	if scheme = strings.ToLower(scheme); scheme != "http" && scheme != "https" {
		return "", "it should begin with https://"
	}
	u, err := url.Parse(scheme + "://" + rest)
	switch {
	case err != nil || strings.ContainsFunc(rest, func(r rune) bool { return r <= ' ' || r == 0x7F || r == '\\' }):
		return "", "it is not well-formed"
	case u.Hostname() == "":
		return "", "there is no host in it"
	case u.User != nil:
		return "", "a user or password does not belong in it"
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", "there is something behind ? or # in it"
	}
	host := strings.ToLower(u.Host)
	if scheme == "https" {
		host = strings.TrimSuffix(host, ":443")
	} else {
		host = strings.TrimSuffix(host, ":80")
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	path = strings.TrimRight(strings.TrimSuffix(path, "/api"), "/")
	return scheme + "://" + strings.TrimSuffix(host, ":") + path, ""
}

// zuliprc is a file as Python's ConfigParser reads it.
type zuliprc struct {
	path   string
	file   *ini.File // keys in lower case, values before % is looked at
	hasAPI bool
}

// shown is the path as it may be printed: people put the file's content there, or the
// key. A bare word is none of these, nor a password, which Zulip's API does not know.
func (z *zuliprc) shown() string {
	if redact.LikeName(z.path) {
		return z.path
	}
	return redact.Path(z.path)
}

// readZuliprc reads the file. The error is fs.ErrNotExist or a *ConfigError.
func readZuliprc(path string) (*zuliprc, error) {
	z := &zuliprc{path: path}
	f, err := os.Open(path)
	if err != nil {
		return z, z.cannot(err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, mostZuliprc+1))
	if err != nil {
		return z, z.cannot(err)
	}
	return z, z.parse(raw)
}

func (z *zuliprc) cannot(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return err
	case errors.Is(err, fs.ErrPermission):
		return &ConfigError{fmt.Sprintf("zuliprc %s: permission denied; let the user that runs this read it",
			z.path), err}
	}
	return &ConfigError{fmt.Sprintf("zuliprc %s cannot be read: %s", z.shown(), redact.FileError(err)), err}
}

// parse reads the file's bytes.
func (z *zuliprc) parse(raw []byte) error {
	if len(raw) > mostZuliprc {
		return configErrorf("zuliprc %s is larger than %d bytes, so it is another file", z.shown(), mostZuliprc)
	}
	text := strings.TrimPrefix(string(raw), "\uFEFF") // which editors on Windows write
	if strings.HasPrefix(text, "\xFF\xFE") || strings.HasPrefix(text, "\xFE\xFF") {
		return configErrorf("zuliprc %s is written in UTF-16; save it as UTF-8", z.path)
	}
	if !utf8.ValidString(text) {
		return configErrorf("zuliprc %s is not written in UTF-8; save it again as UTF-8", z.path)
	}
	return z.read(text)
}

// read finds out which line is what, and fills the sections of an ini.File. ini.v1's own
// reader would take every indented line for a key, end values at quotes, join lines at
// backslashes, let later values win where ConfigParser refuses doubled ones, and quote
// lines in its errors.
//
// The rules are those of RawConfigParser._read in CPython's Lib/configparser.py, as
// zulip/__init__.py uses it: strict, # and ; begin comments on lines of their own only,
// empty lines may stand in values, and a line that is indented more than the key above it
// goes on with its value.
func (z *zuliprc) read(text string) error {
	bad := func(line int, what string) error {
		return configErrorf("zuliprc %s, line %d: %s; %s again", z.shown(), line, what, download)
	}
	z.file = ini.Empty(ini.LoadOptions{ChildSectionDelimiter: "\n"}) // a dot in a section's name means nothing
	var (
		section *ini.Section // nil: none has begun
		current *ini.Key     // whose value may go on
		indent  int
		broken  error // of the first line that is nothing; others are worse
	)
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
	for i, line := range strings.Split(text, "\n") {
		value := strings.TrimFunc(line, pythonSpace)
		at := utf8.RuneCountInString(line[:strings.Index(line, value)]) // how many characters it is indented
		switch {
		case value != "" && (value[0] == '#' || value[0] == ';'):
			continue
		case current != nil && (value == "" || at > indent):
			current.SetValue(current.Value() + "\n" + value)
			continue
		case value == "":
			continue
		}
		indent = at
		if end := strings.LastIndexByte(value, ']'); value[0] == '[' && end > 1 {
			name := value[1:end]
			if z.file.HasSection(name) && name != ini.DefaultSection {
				return bad(i+1, "a section of this name was there before")
			}
			section, _ = z.file.NewSection(name) // an error only without a name, as below
			current = nil
			continue
		}
		if section == nil {
			return bad(i+1, "there is no section [api] above this line")
		}
		delimiter := strings.IndexAny(value, "=:")
		if delimiter < 0 {
			broken = cmp.Or(broken, bad(i+1, "this is neither a section, nor a key with a value, nor a comment"))
			continue
		}
		name := strings.ToLower(strings.TrimRightFunc(value[:delimiter], pythonSpace))
		switch {
		case name == "":
			broken, current = cmp.Or(broken, bad(i+1, "there is no key in front of the value")), nil
		case section.HasKey(name):
			return bad(i+1, "a key of this name was there before")
		default:
			current, _ = section.NewKey(name, strings.TrimFunc(value[delimiter+1:], pythonSpace))
		}
	}
	z.hasAPI = z.file.HasSection("api")
	return broken
}

// pythonSpace is what str.strip takes away.
func pythonSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1C && r <= 0x1F }

// raw is the value of a key in [api], else in [DEFAULT], which says nothing by itself.
func (z *zuliprc) raw(key string) (value string, ok bool) {
	if !z.hasAPI {
		return "", false
	}
	for _, section := range []string{"api", ini.DefaultSection} {
		if k, err := z.file.Section(section).GetKey(key); err == nil {
			return strings.TrimRightFunc(k.Value(), pythonSpace), true
		}
	}
	return "", false
}

// get is the value of a key, empty if it is not there, with % taken as ConfigParser does
// (BasicInterpolation): %% is one %, %(name)s is the value of another key, and any other
// % is an error.
func (z *zuliprc) get(key string) (string, error) {
	var out strings.Builder
	raw, _ := z.raw(key)
	if what := z.interpolate(&out, raw, 1); what != "" {
		return "", configErrorf("zuliprc %s: %s: %s", z.shown(), key, what)
	}
	return out.String(), nil
}

// interpolate appends the value raw stands for to out, or says what is wrong with it.
func (z *zuliprc) interpolate(out *strings.Builder, raw string, depth int) (what string) {
	const mostDepth, mostLength = 10, 1 << 16
	if depth > mostDepth || out.Len() > mostLength {
		return "its references with % go round in circles"
	}
	for {
		before, after, found := strings.Cut(raw, "%")
		out.WriteString(before)
		if !found {
			return ""
		}
		if strings.HasPrefix(after, "%") {
			out.WriteByte('%')
			raw = after[1:]
			continue
		}
		name, rest, closed := strings.Cut(strings.TrimPrefix(after, "("), ")s")
		if !strings.HasPrefix(after, "(") || !closed || name == "" || strings.Contains(name, ")") {
			return "a % has to be written as %%"
		}
		value, ok := z.raw(strings.ToLower(name))
		if !ok {
			return "a reference with % names a key that is not there; a plain % has to be written as %%"
		}
		if what := z.interpolate(out, value, depth+1); what != "" {
			return what
		}
		raw = rest
	}
}
