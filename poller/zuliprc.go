package poller

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/ini.v1"
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

// Overrides are values given as arguments, in the words of the zuliprc. Empty means not given.
type Overrides struct {
	Email, Key, Site, CertBundle, ClientCert, ClientCertKey string
	Insecure                                                *bool
}

// Source says where an account comes from. The rules are those of Zulip's Python client (python-zulip-api, zulip/__init__.py, class
// Client), so that a zuliprc and an environment that work there work here: each value comes from the argument, else from the
// environment, else from the file.
type Source struct {
	File      string              // the zuliprc as given as argument, ~ allowed; empty: the one of ZULIP_CONFIG, else ~/.zuliprc
	Overrides Overrides           // values given as arguments
	Getenv    func(string) string // nil: os.Getenv. An empty variable counts as not set
	Home      string              // what ~ stands for; empty: $HOME
}

const download = "download it from Zulip's settings of the bot, or of your account"

// mostZuliprc is far beyond any zuliprc; what is larger is another file.
const mostZuliprc = 1 << 20

// LoadAccount reads an account. Every error is a *ConfigError that names the file and the key, or the variable, and quotes no value:
// a key may stand where another value should.
func LoadAccount(src Source) (Account, error) {
	getenv := src.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	path, named := src.path(getenv)
	file, err := readZuliprc(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return Account{}, err
	}

	var a Account
	o := src.Overrides
	given := false // the account needs no file
	from := map[string]string{}
	for _, v := range []struct {
		name, env string
		argument  string
		into      *string
	}{
		{"email", "ZULIP_EMAIL", o.Email, &a.Email},
		{"key", "ZULIP_API_KEY", o.Key, &a.Key},
		{"site", "ZULIP_SITE", o.Site, &a.Site},
		{"client_cert", "ZULIP_CERT", o.ClientCert, &a.ClientCert},
		{"client_cert_key", "ZULIP_CERT_KEY", o.ClientCertKey, &a.ClientCertKey},
		{"cert_bundle", "ZULIP_CERT_BUNDLE", o.CertBundle, &a.CertBundle},
	} {
		switch env := getenv(v.env); {
		case v.argument != "":
			*v.into, from[v.name] = v.argument, "the argument for "+v.name
		case env != "":
			*v.into, from[v.name] = env, "the variable "+v.env
		default:
			if *v.into, err = file.get(v.name); err != nil {
				return Account{}, err
			}
			from[v.name] = fmt.Sprintf("zuliprc %s: %s", path, v.name)
		}
		if v.name == "key" {
			given = a.Email != "" && a.Key != ""
		}
	}
	if a.Insecure, err = src.insecure(getenv, file, path); err != nil {
		return Account{}, err
	}

	switch {
	case missing && !given && named:
		return Account{}, &ConfigError{fmt.Sprintf("there is no zuliprc %s; %s, or set ZULIP_EMAIL, ZULIP_API_KEY and ZULIP_SITE", path, download),
			fs.ErrNotExist}
	case missing && !given:
		return Account{}, &ConfigError{fmt.Sprintf("no zuliprc is named, and there is none at %s: %s, and give its path as --zuliprc or ZULIP_CONFIG",
			path, download), fs.ErrNotExist}
	case !missing && !given && !file.hasAPI:
		return Account{}, configErrorf("zuliprc %s: there is no section [api]; it should be the line above email, key and site: %s again", path, download)
	}
	where := "zuliprc " + path + ": [api]"
	if missing {
		where = "the account"
	}
	for _, v := range []struct{ name, value, env string }{
		{"email", a.Email, "ZULIP_EMAIL"}, {"key", a.Key, "ZULIP_API_KEY"}, {"site", a.Site, "ZULIP_SITE"},
	} {
		if v.value == "" {
			return Account{}, configErrorf("%s has no %q; %s again, or set %s", where, v.name, download, v.env)
		}
	}
	if !validKey(a.Key) {
		return Account{}, configErrorf("%s is no API key: it should be 32 letters and digits, and is %d characters; %s again",
			from["key"], utf8.RuneCountInString(a.Key), download)
	}
	if strings.ContainsFunc(a.Email, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == ':' }) {
		return Account{}, configErrorf("%s is no e-mail address: there is a blank, a colon or a line break in it", from["email"])
	}
	var what string
	if a.Site, what = normalSite(a.Site); what != "" {
		return Account{}, configErrorf("%s is no address of a server such as https://chat.example.com: %s", from["site"], what)
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
			return Account{}, &ConfigError{fmt.Sprintf("%s names the file %s, which cannot be had: %s", from[v.name], v.file, reason(err)), err}
		} else if info.IsDir() {
			return Account{}, configErrorf("%s names %s, a folder, not a file", from[v.name], v.file)
		}
	}
	return a, nil
}

// path is the zuliprc to read, and whether anybody named it.
func (src Source) path(getenv func(string) string) (path string, named bool) {
	home := src.Home
	if home == "" {
		home = getenv("HOME")
	}
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

// insecure takes only the words true and false, so that nobody gives up security by a slip.
func (src Source) insecure(getenv func(string) string, file *zuliprc, path string) (bool, error) {
	if v := src.Overrides.Insecure; v != nil {
		return *v, nil
	}
	word, where := getenv("ZULIP_ALLOW_INSECURE"), "the variable ZULIP_ALLOW_INSECURE"
	if word == "" {
		var err error
		if word, err = file.get("insecure"); err != nil {
			return false, err
		}
		where = fmt.Sprintf("zuliprc %s: insecure", path)
		if word == "" && !file.has("insecure") {
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

// validKey reports whether key has the form of an API key (zerver/lib/utils.py, has_api_key_format).
func validKey(key string) bool {
	return len(key) == 32 && !strings.ContainsFunc(key, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	})
}

// normalSite makes the base URL of what people write as site: localhost means http, anything else without a scheme https, and /api at
// the end is left out. what says why it cannot be.
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

// reason is what went wrong with a file, without its path.
func reason(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err.Error()
	}
	return err.Error()
}

// zuliprc is a file as Python's ConfigParser reads it.
type zuliprc struct {
	path   string
	hasAPI bool
	keys   map[string]string // of [api] and, for what is not there, of [DEFAULT]; raw, that is before % is looked at
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
		return &ConfigError{fmt.Sprintf("zuliprc %s: permission denied; let the user that runs this read it", z.path), err}
	}
	return &ConfigError{fmt.Sprintf("zuliprc %s cannot be read: %s", z.path, reason(err)), err}
}

// parse reads the file's bytes.
func (z *zuliprc) parse(raw []byte) error {
	if len(raw) > mostZuliprc {
		return configErrorf("zuliprc %s is larger than %d bytes, so it is another file", z.path, mostZuliprc)
	}
	text := strings.TrimPrefix(string(raw), "\uFEFF") // which editors on Windows write
	if strings.HasPrefix(text, "\xFF\xFE") || strings.HasPrefix(text, "\xFE\xFF") {
		return configErrorf("zuliprc %s is written in UTF-16; save it as UTF-8", z.path)
	}
	if !utf8.ValidString(text) {
		return configErrorf("zuliprc %s is not written in UTF-8; save it again as UTF-8", z.path)
	}
	plain, err := z.plain(text)
	if err != nil {
		return err
	}
	file, err := ini.LoadSources(ini.LoadOptions{IgnoreContinuation: true, IgnoreInlineComment: true, PreserveSurroundedQuote: true,
		KeyValueDelimiters: "=", AllowNonUniqueSections: false}, []byte(plain))
	if err != nil {
		// plain writes nothing that could be misread; its error would quote the line, so it is not shown.
		return configErrorf("zuliprc %s cannot be understood; %s again", z.path, download)
	}
	z.keys = map[string]string{}
	if !z.hasAPI {
		return nil // [DEFAULT] by itself says nothing
	}
	for _, section := range []string{ini.DefaultSection, "api"} {
		for _, k := range file.Section(section).Keys() {
			z.keys[k.Name()] = k.Value()
		}
	}
	return nil
}

// plain writes the file anew in the plain form that ini.v1 reads as ConfigParser reads the original. Left to itself ini.v1 takes every
// indented line for a key, ends values at quotes, joins lines at backslashes, lets later values win where ConfigParser refuses doubled
// ones, and quotes lines in its errors. What is written here is one line for each key of [DEFAULT] and [api], the value between
// backquotes; the rest of the file is only checked.
//
// The rules are those of RawConfigParser._read in CPython's Lib/configparser.py, as zulip/__init__.py uses it: strict, # and ; begin
// comments on lines of their own only, empty lines may stand in values, and a line that is indented more than the key above it goes on
// with its value.
func (z *zuliprc) plain(text string) (string, error) {
	bad := func(line int, what string) error {
		return configErrorf("zuliprc %s, line %d: %s; %s again", z.path, line, what, download)
	}
	var (
		values  = map[[2]string]*[]string{}
		order   [][2]string
		section string
		inside  bool      // a section has begun
		current *[]string // value that may go on
		indent  int
		broken  error // of the first line that is nothing; others are worse
	)
	sections := map[string]bool{}
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
	for i, line := range strings.Split(text, "\n") {
		value := strings.TrimFunc(line, pythonSpace)
		if value == "" {
			if current != nil {
				*current = append(*current, "")
			}
			continue
		}
		if value[0] == '#' || value[0] == ';' {
			continue
		}
		at := 0 // how many characters it is indented
		for _, r := range line {
			if !pythonSpace(r) {
				break
			}
			at++
		}
		if current != nil && at > indent {
			*current = append(*current, value)
			continue
		}
		indent = at
		if end := strings.LastIndexByte(value, ']'); value[0] == '[' && end > 1 {
			section = value[1:end]
			if sections[section] && section != ini.DefaultSection {
				return "", bad(i+1, "a section of this name was there before")
			}
			sections[section] = true
			inside, current = true, nil
			continue
		}
		if !inside {
			return "", bad(i+1, "there is no section [api] above this line")
		}
		delimiter := strings.IndexAny(value, "=:")
		if delimiter < 0 {
			if broken == nil {
				broken = bad(i+1, "this is neither a section, nor a key with a value, nor a comment")
			}
			continue
		}
		key := strings.ToLower(strings.TrimRightFunc(value[:delimiter], pythonSpace))
		if key == "" && broken == nil {
			broken = bad(i+1, "there is no key in front of the value")
		}
		place := [2]string{section, key}
		if values[place] != nil {
			return "", bad(i+1, "a key of this name was there before")
		}
		v := []string{strings.TrimFunc(value[delimiter+1:], pythonSpace)}
		values[place] = &v
		order = append(order, place)
		if current = &v; key == "" {
			current = nil
		}
	}
	if broken != nil {
		return "", broken
	}
	z.hasAPI = sections["api"]

	var out strings.Builder
	for _, name := range []string{ini.DefaultSection, "api"} {
		fmt.Fprintf(&out, "[%s]\n", name)
		for _, place := range order {
			if place[0] != name || !plainKey(place[1]) {
				continue // no key of ours has other characters
			}
			value := strings.TrimRightFunc(strings.Join(*values[place], "\n"), pythonSpace)
			quote := "`"
			if strings.Contains(value, "`") && strings.Contains(value, "\n") {
				if quote = `"""`; strings.Contains(value, quote) {
					return "", configErrorf("zuliprc %s: there are odd quotes in a value of several lines; %s again", z.path, download)
				}
			}
			fmt.Fprintf(&out, "%s=%s%s%s\n", place[1], quote, value, quote)
		}
	}
	return out.String(), nil
}

// plainKey reports whether a key is made of what keys of a zuliprc are made of.
func plainKey(key string) bool {
	return key != "" && !strings.ContainsFunc(key, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_') })
}

// pythonSpace is what str.strip takes away.
func pythonSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1C && r <= 0x1F }

func (z *zuliprc) has(key string) bool { _, ok := z.keys[key]; return ok }

// get is the value of a key, empty if it is not there, with % taken as ConfigParser does (BasicInterpolation): %% is one %, %(name)s is
// the value of another key, and any other % is an error.
func (z *zuliprc) get(key string) (string, error) {
	var out strings.Builder
	if what := z.interpolate(&out, z.keys[key], 1); what != "" {
		return "", configErrorf("zuliprc %s: %s: %s", z.path, key, what)
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
		value, ok := z.keys[strings.ToLower(name)]
		if !ok {
			return "a reference with % names a key that is not there; a plain % has to be written as %%"
		}
		if what := z.interpolate(out, value, depth+1); what != "" {
			return what
		}
		raw = rest
	}
}
