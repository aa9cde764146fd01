package cli

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"
)

// option is one setting: a flag and the variables that stand for it. A flag --foo-bar is also ZULIP_NATS_FOO_BAR; also names variables
// that people have set already for other programs. What is given first counts: flag, own variable, the other variables. An empty variable
// is no setting.
//
// It is a flag of urfave/cli that only remembers its words. They are parsed afterwards by [parse], all of them, so that everything that
// is wrong can be said at once, with the flag and the variable.
type option struct {
	*urfave.GenericFlag
	also   []string           // further variables
	isBool bool               // --flag alone means true
	many   bool               // may be given more than once; the words are joined by commas
	set    func(string) error // takes the word; the error says what is wrong with it, starting with the word unless it is secret
	given  *words
}

// words are what the command line gave.
type words struct {
	all    []string
	isBool bool
}

func (w *words) Set(s string) error { w.all = append(w.all, s); return nil }
func (w *words) String() string     { return "" }
func (w *words) IsBoolFlag() bool   { return w.isBool }

// opt makes an option. In usage, `WORD` names its value; def is the default as help shows it.
func opt(category, name, usage, def string, set func(string) error, more ...func(*option)) *option {
	o := &option{GenericFlag: &urfave.GenericFlag{Category: category, Name: name, Usage: usage, DefaultText: def}, set: set}
	for _, f := range more {
		f(o)
	}
	o.given = &words{isBool: o.isBool}
	o.EnvVars = append([]string{"ZULIP_NATS_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))}, o.also...)
	return o
}

func also(variables ...string) func(*option) { return func(o *option) { o.also = variables } }
func many(o *option)                         { o.many = true }
func yes(o *option)                          { o.isBool = true }

// Apply makes the flag known to a flag set. The library's own would read the variables too, and mix them with the flag's words.
func (o *option) Apply(set *flag.FlagSet) error {
	set.Var(o.given, o.Name, o.Usage)
	return nil
}

// TakesValue and String are the library's, but for flags that need no value.
func (o *option) TakesValue() bool { return !o.isBool }

// String is the line in help.
func (o *option) String() string { return urfave.FlagStringer(o) }

// parse takes the word of each option, from wherever it was given, and returns all that is wrong with them as one error.
func parse(options []*option) error {
	var wrong []error
	for _, o := range options {
		word, source := o.word()
		if source == "" {
			continue
		}
		if err := o.set(word); err != nil {
			other := o.EnvVars[0]
			if source != "--"+o.Name {
				other = "--" + o.Name
			}
			wrong = append(wrong, usageErrorf("%s (or %s): %w", source, other, err))
		}
	}
	return errors.Join(wrong...)
}

// word gives the option's word and where it comes from; no source if it was not given.
func (o *option) word() (word, source string) {
	if n := len(o.given.all); n > 0 {
		if o.many {
			return strings.Join(o.given.all, ","), "--" + o.Name
		}
		return o.given.all[n-1], "--" + o.Name
	}
	for _, name := range o.EnvVars {
		if v := os.Getenv(name); v != "" {
			return v, name
		}
	}
	return "", ""
}

// flags makes urfave's flags of ours.
func flags(options []*option) []urfave.Flag {
	f := make([]urfave.Flag, len(options))
	for i, o := range options {
		f[i] = o
	}
	return f
}

// The kinds of words. Each takes the place that the value goes to.

func text(to *string) func(string) error {
	return func(s string) error { *to = s; return nil }
}

func list(to *[]string) func(string) error {
	return func(s string) error {
		*to = nil
		for word := range strings.SplitSeq(s, ",") {
			if word = strings.TrimSpace(word); word != "" {
				*to = append(*to, word)
			}
		}
		return nil
	}
}

func oneOf[S ~string](to *S, of ...S) func(string) error {
	return func(s string) error {
		if !slices.Contains(of, S(s)) {
			names := make([]string, len(of))
			for i, o := range of {
				names[i] = string(o)
			}
			return fmt.Errorf("%q is none of %s", s, strings.Join(names, ", "))
		}
		*to = S(s)
		return nil
	}
}

// duration takes 90s, 24h or 7d, at least the least and at most the most.
func duration(to *time.Duration, least, most time.Duration) func(string) error {
	return func(s string) error {
		d, err := time.ParseDuration(s)
		if days, ok := strings.CutSuffix(s, "d"); err != nil && ok {
			var n int
			if n, err = strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
				d = time.Duration(n) * 24 * time.Hour
			}
		}
		switch {
		case err != nil:
			return fmt.Errorf("%q is no duration: write it like 90s, 24h or 7d", s)
		case d < least:
			return fmt.Errorf("%s is too short: give at least %s", s, least)
		case d > most:
			return fmt.Errorf("%s is too long: give at most %s", s, most)
		}
		*to = d
		return nil
	}
}

func number(to *int, least, most int) func(string) error {
	return func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return fmt.Errorf("%q is no number from %d to %d", s, least, most)
		}
		*to = n
		return nil
	}
}

func truth(to *bool) func(string) error {
	return func(s string) error {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		*to = b
		return nil
	}
}

// narrow takes a filter as Zulip's API does: a JSON list of [operator, operand], both text.
func narrow(to *[][2]string) func(string) error {
	return func(s string) error {
		var pairs [][]string
		if err := json.Unmarshal([]byte(s), &pairs); err != nil {
			return fmt.Errorf(`%.200q is not a JSON list of pairs of text: write it like [["channel", "announce"], ["topic", "release"]]`, s)
		}
		*to = nil
		for _, p := range pairs {
			if len(p) != 2 {
				return fmt.Errorf("%q is not a pair of an operator and an operand", p)
			}
			*to = append(*to, [2]string{p[0], p[1]})
		}
		return nil
	}
}

// natsURLs takes one or more addresses of NATS servers, with commas between. A password in one appears in no error.
func natsURLs(to *string) func(string) error {
	return func(s string) error {
		var urls []string
		if err := list(&urls)(s); err != nil {
			return err
		}
		for _, u := range urls {
			if err := checkNATSURL(u); err != nil {
				return fmt.Errorf("%q %w: write it like nats://nats.example.org:4222", maskURL(u), err)
			}
		}
		*to = strings.Join(urls, ",")
		return nil
	}
}

func checkNATSURL(s string) error {
	if !strings.Contains(s, "://") {
		s = "nats://" + s // as the client reads it
	}
	u, err := url.Parse(s)
	if err != nil {
		// The parser's error repeats the address, and with it a password.
		return errors.New("is not the address of a NATS server")
	}
	switch u.Scheme {
	case "nats", "tls", "ws", "wss":
	default:
		return fmt.Errorf("has the scheme %q, which is none of nats, tls, ws, wss", u.Scheme)
	}
	if u.Hostname() == "" || strings.ContainsAny(u.Hostname(), " \t") {
		return errors.New("names no host")
	}
	if p := u.Port(); p != "" {
		if _, err := net.LookupPort("tcp", p); err != nil || p == "0" {
			return fmt.Errorf("has the port %q, which is no number from 1 to 65535", p)
		}
	}
	return nil
}

// maskURL hides the password, or the token, in an address, whether it can be parsed or not.
func maskURL(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		scheme, rest = "", s
	} else {
		scheme += "://"
	}
	at := strings.LastIndexByte(rest, '@')
	if at < 0 {
		return s
	}
	if user, _, ok := strings.Cut(rest[:at], ":"); ok {
		return scheme + user + ":xxxxx" + rest[at:]
	}
	return scheme + "xxxxx" + rest[at:]
}
