// Package redact says what of a setting may be printed. People put a secret where the
// name of a file belongs, and a token where only a user and a password were thought of,
// and what stands in a log is read by many. So the rules go by what may be shown, and not
// by what has to be hidden: of an address scheme, host and port ([URL]); of the name of a
// file nothing, unless there is such a file or the name can hardly be anything else
// ([Path]); of other settings what does not look like a key ([Text]).
package redact

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// URL is scheme, host and port of an address, and nothing else of it: no user, no
// password, no token, no path, no query. It is empty for what is no address, since a
// password with an @, a / or a # in it cannot be told from the host then. A single host,
// with or without a port, has no scheme here either.
func URL(raw string) string {
	full, added := raw, false
	if !strings.Contains(raw, "://") {
		full, added = "any://"+raw, true
	}
	u, err := url.Parse(full)
	if err != nil || u.Hostname() == "" {
		return ""
	}
	// An @ behind the host is a sign that the secret before it has a mark in it at which
	// the parser ended the host.
	_, rest, _ := strings.Cut(full, "://")
	if end := strings.IndexAny(rest, "/?#"); end >= 0 && strings.Contains(rest[end:], "@") {
		return ""
	}
	if !hostForm.MatchString(u.Host) || len(u.Scheme) > mostScheme || Secret(u.Host) {
		return ""
	}
	if added {
		return u.Host
	}
	return u.Scheme + "://" + u.Host
}

// mostScheme is the length of the longest scheme that is shown; ones for NATS and HTTP
// have 5 letters at most.
const mostScheme = 8

// hostForm is what the host of an address may be made of: letters of any script, digits,
// and the marks of names and of IPv6 addresses.
var hostForm = regexp.MustCompile(`^[\pL\pN._:%\[\]-]+$`)

// URLs is the same for several addresses with commas between; one that cannot be shown is
// named by its place.
func URLs(list string) string {
	all := strings.Split(list, ",")
	for i, raw := range all {
		if all[i] = URL(strings.TrimSpace(raw)); all[i] == "" {
			all[i] = "(address " + fmt.Sprint(i+1) + ", not shown)"
		}
	}
	return strings.Join(all, ", ")
}

// Path is the name of a file as it may be shown, in quotes where it has odd characters,
// or a remark in brackets that it is not shown: if there is no such file, and the name
// may be a secret that stands where a name belongs.
func Path(name string) string {
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) || !exists(name) && !LikePath(name) {
		return notShown
	}
	return name
}

// notShown stands for the name of a file.
const notShown = "(not shown: what is given does not look like the name of a file)"

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

const (
	mostPath = 4 << 10 // PATH_MAX of Linux
	longRun  = 40      // characters of a hash, a key or a token in base32, base64 or hex
	someRun  = 24      // the same, of what stands alone
)

// LikePath says whether something can hardly be anything but the name of a file, whether
// or not there is one.
func LikePath(name string) bool {
	switch {
	case name == "", len(name) > mostPath, !utf8.ValidString(name), strings.ContainsFunc(name, unicode.IsControl):
		return false
	case strings.Contains(name, "://"), Secret(name):
		return false
	case !strings.ContainsAny(name, `/\.`): // a bare word, as a password is
		return false
	}
	rooted := strings.HasPrefix(name, "/") || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") ||
		strings.HasPrefix(name, "~/") || len(name) > 2 && name[1] == ':' && unicode.IsLetter(rune(name[0]))
	return rooted || !mixedRun.MatchString(name) || !mixed(name)
}

// LikeName is [LikePath] where a bare word is the name of a file too: typo for ./typo.
func LikeName(name string) bool {
	bare := name != "" && !strings.ContainsAny(name, `/\.`) && LikePath("./"+name)
	return LikePath(name) || bare && !(mixedRun.MatchString(name) && mixed(name))
}

// mixed says whether there are digits, capitals and small letters in it, as in what a
// machine has drawn.
func mixed(s string) bool {
	return strings.ContainsFunc(s, unicode.IsDigit) && strings.ContainsFunc(s, unicode.IsUpper) &&
		strings.ContainsFunc(s, unicode.IsLower)
}

var (
	// mixedRun is base64 from end to end, in which / is a letter like others.
	mixedRun = regexp.MustCompile(fmt.Sprintf(`^[A-Za-z0-9+/=_-]{%d,}$`, someRun))
	// longMixed may be base64 or the name of a file.
	longMixed = regexp.MustCompile(fmt.Sprintf(`[A-Za-z0-9+/=_-]{%d,}`, longRun))
)

// keys are what keys look like: seeds of nkeys (github.com/nats-io/nkeys: S, a letter for
// the kind, base32), JWTs, PEM, API keys of Zulip (32 letters and digits), the keys of a
// zuliprc, and long runs of base32, base64 or hex in general.
var keys = regexp.MustCompile(`-----BEGIN|\bS[ACNOUX][A-Z2-7]{30,}|\beyJ[A-Za-z0-9_-]{10,}|(?i:\bkey\s*[=:]\s*\S)|` +
	`(?:^|[^A-Za-z0-9])[A-Za-z0-9]{32}(?:[^A-Za-z0-9]|$)|` + fmt.Sprintf(`[A-Za-z0-9+=]{%d,}`, longRun))

// longURLRun may be base64 as in URLs, or a name with hyphens in it.
var longURLRun = regexp.MustCompile(fmt.Sprintf(`[A-Za-z0-9+=_-]{%d,}`, longRun))

// Secret says whether there is something in a text that looks like a key. It errs on the
// safe side, and knows no passwords.
func Secret(text string) bool {
	return keys.MatchString(text) || slices.ContainsFunc(longURLRun.FindAllString(text, -1), mixed)
}

// Text is a text as it may be shown: the text itself, or a remark that it looks like a
// key.
func Text(text string) string {
	if Secret(text) || slices.ContainsFunc(longMixed.FindAllString(text, -1), mixed) {
		return "(not shown: it looks like a key)"
	}
	return text
}

// mostSecret is more than any password, key or JWT has.
const mostSecret = 64 << 10

// ReadSecret reads a file that holds one secret and nothing else: a line break at its end
// does not belong to it. Errors name the file, as far as that may be shown.
func ReadSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("the file %s cannot be read: %s", Path(path), FileError(err))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, mostSecret+1))
	secret := strings.TrimRight(string(text), "\r\n")
	switch {
	case err != nil:
		return "", fmt.Errorf("the file %s cannot be read: %s", Path(path), FileError(err))
	case len(text) > mostSecret:
		return "", fmt.Errorf("the file %s is larger than %d bytes, so it is another one", Path(path), mostSecret)
	case secret == "":
		return "", fmt.Errorf("the file %s is empty", Path(path))
	}
	return secret, nil
}

// FileError is what the system says about a file, without the name of it, which goes into
// a sentence by [Path].
func FileError(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err.Error()
	}
	return Text(err.Error())
}
