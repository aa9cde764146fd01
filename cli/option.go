package cli

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"

	"zulip-nats/redact"
	"zulip-nats/stream"
)

// option is one setting: a flag and the variables that stand for it. A flag --foo-bar is
// also ZULIP_NATS_FOO_BAR; also names variables that people have set already for other
// programs. What is given first counts: flag, own variable, the other variables. An empty
// variable is no setting.
//
// It is a flag of urfave/cli that only remembers its words. They are parsed afterwards by
// [parse], all of them, so that everything that is wrong can be said at once, with the
// flag and the variable.
type option struct {
	*urfave.GenericFlag
	also   []string // further variables
	isBool bool     // --flag alone means true
	many   bool     // may be given more than once; the words are joined by commas
	// The word is, or may hold, a secret: it is in no error and no log line, and may stand
	// in a file of its own.
	secret bool
	// set takes the word; the error says what is wrong with it, starting with the word unless
	// it is secret.
	set   func(string) error
	given *words
}

// words are what the command line gave.
type words struct {
	all    []string
	isBool bool
}

func (w *words) Set(s string) error { w.all = append(w.all, s); return nil }
func (w *words) String() string     { return "" }
func (w *words) IsBoolFlag() bool   { return w.isBool }

// opt makes an option. In usage, `WORD` names its value; def is the default as help shows
// it.
func opt(category, name, usage, def string, set func(string) error, more ...func(*option)) *option {
	o := &option{GenericFlag: &urfave.GenericFlag{Category: category, Name: name, Usage: usage,
		DefaultText: def}, set: set}
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
func secret(o *option)                       { o.secret = true }

// Apply makes the flag known to a flag set. The library's own would read the variables
// too, and mix them with the flag's words.
func (o *option) Apply(set *flag.FlagSet) error {
	set.Var(o.given, o.Name, o.Usage)
	return nil
}

// Names is the one name. The library's own looks for what a name of its first version
// could have had besides, for each flag and each time that it is asked.
func (o *option) Names() []string { return []string{o.Name} }

// TakesValue and String are the library's, but for flags that need no value.
func (o *option) TakesValue() bool { return !o.isBool }

// String is the line in help.
func (o *option) String() string { return urfave.FlagStringer(o) }

// parse takes the word of each option, from wherever it was given, and returns all that
// is wrong with them as one error.
func parse(options []*option) error {
	var wrong []error
	for _, o := range options {
		word, source, err := o.word()
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		if source == "" {
			continue
		}
		if err := o.take(word, source); err != nil {
			wrong = append(wrong, err)
		}
	}
	return errors.Join(wrong...)
}

// take sets the option to a word, which source gave: a flag or a variable.
func (o *option) take(word, source string) error {
	err := o.set(word)
	if err == nil {
		return nil
	}
	if redact.Text(word) != word {
		err = errLikeKey
	}
	return usageErrorf("%s (or %s): %w", source, o.other(source), err)
}

// errLikeKey stands for what is wrong with a word that must not be shown.
var errLikeKey = errors.New("what is given looks like a key, so it is not shown; it is not what belongs here: see --help")

// other is another way to give the option than that source.
func (o *option) other(source string) string {
	if source != "--"+o.Name {
		return "--" + o.Name
	}
	return o.EnvVars[0]
}

// word gives the option's word and where it comes from; no source if it was not given. A
// secret may also stand in a file that a variable names, NAME_FILE for the variable NAME,
// as it is usual in containers.
func (o *option) word() (word, source string, err error) {
	if n := len(o.given.all); n > 0 {
		if o.many {
			return strings.Join(o.given.all, ","), "--" + o.Name, nil
		}
		return o.given.all[n-1], "--" + o.Name, nil
	}
	for _, name := range o.EnvVars {
		if v := os.Getenv(name); v != "" && !ofService(name, v) {
			return v, name, nil
		}
		if path := os.Getenv(name + "_FILE"); o.secret && path != "" {
			name += "_FILE"
			word, err := redact.ReadSecret(path)
			if err != nil {
				return "", "", configErrorf("%s: %w", name, err)
			}
			return word, name, nil
		}
	}
	return "", "", nil
}

// ofService reports whether a variable was set by Kubernetes, or by Docker for a linked
// container: for a Service zulip-nats-nats, ZULIP_NATS_NATS_PORT is tcp://10.0.0.7:4222.
// No port of ours looks like that.
func ofService(name, value string) bool {
	return strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

// serviceForm is the names of the other variables that Kubernetes sets for a Service.
var serviceForm = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)`)

// unknownVariables names the variables that look like ours, and that no option of the
// commands has, each with the one that is meant by all appearances.
func unknownVariables(commands []*urfave.Command) (unknown []string) {
	known := []string{"ZULIP_CONFIG", "ZULIP_EMAIL", "ZULIP_API_KEY", "ZULIP_API_KEY_FILE", "ZULIP_SITE", "ZULIP_CERT",
		"ZULIP_CERT_KEY", "ZULIP_CERT_BUNDLE", "ZULIP_ALLOW_INSECURE"}
	for _, c := range commands {
		for _, o := range optionsOf(c) {
			known = append(known, o.EnvVars...)
			if o.secret {
				known = append(known, o.EnvVars[0]+"_FILE")
			}
		}
	}
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		rest, ours := strings.CutPrefix(name, "ZULIP_NATS_")
		if !ours || value == "" || slices.Contains(known, name) || ofService(name, value) ||
			serviceForm.MatchString(name) {
			continue
		}
		like := near(name, known)
		for _, other := range []string{"ZULIP_" + rest, "ZULIP_NATS_NATS_" + rest} {
			if slices.Contains(known, other) {
				like = other
			}
		}
		if name = redact.Text(name); like != "" {
			name += " (is " + like + " meant?)"
		}
		unknown = append(unknown, name)
	}
	slices.Sort(unknown)
	return unknown
}

// near is the one of the names that a misspelt one may stand for, "" if none is close: at
// most one letter changed, left out or added, or two from five letters on.
func near(word string, names []string) string {
	best, least := "", min((len(word)+1)/3, 2)+1
	for _, name := range names {
		if d := smetrics.WagnerFischer(word, name, 1, 1, 1); d < least {
			best, least = name, d
		}
	}
	return best
}

// optionsOf are the options of a command: its flags, but for those of the library.
func optionsOf(c *urfave.Command) (options []*option) {
	for _, f := range c.Flags {
		if o, ok := f.(*option); ok {
			options = append(options, o)
		}
	}
	return options
}

// says is what an option is for, without the marks of its value's name.
func (o *option) says() string { return strings.ReplaceAll(o.Usage, "`", "") }

// value is the name of an option's value, "" if it takes none.
func (o *option) value() string {
	if o.isBool {
		return ""
	}
	name := "VALUE"
	if _, rest, ok := strings.Cut(o.Usage, "`"); ok {
		name, _, _ = strings.Cut(rest, "`")
	}
	return name
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

// name is a text that everybody will see, in subjects and in the log.
func name(to *string) func(string) error {
	return func(s string) error {
		if redact.Secret(s) {
			return errors.New("it looks like a key") // parse shows neither
		}
		return text(to)(s)
	}
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
			return fmt.Errorf("%s is too short: give at least %s", s, period(least))
		case d > most:
			return fmt.Errorf("%s is too long: give at most %s", s, period(most))
		}
		*to = d
		return nil
	}
}

// period is a duration for people.
func period(d time.Duration) string {
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{24 * time.Hour, "days"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}} {
		if n := d / unit.of; d%unit.of == 0 && (n > 1 || n == 1 && unit.name != "days") {
			return fmt.Sprintf("%d %s", n, unit.name)
		}
	}
	return d.String()
}

// size takes a number of bytes, or one of K, M, G or T, which are powers of 1024 with or
// without iB or B behind, as the nats command has it.
func size(to *int64, least int64) func(string) error {
	return func(s string) error {
		upper := strings.ToUpper(s)
		number := strings.TrimRight(upper, "KMGTIB")
		shift, known := map[string]int{"": 0, "B": 0, "K": 10, "M": 20, "G": 30,
			"T": 40}[strings.TrimSuffix(strings.TrimSuffix(upper[len(number):], "B"), "I")]
		n, err := strconv.ParseInt(number, 10, 64)
		switch {
		case err != nil, !known, n < 0, n > math.MaxInt64>>shift:
			return fmt.Errorf("%.200q is no size: write it like 500M, 10G or 1T", s)
		case n<<shift < least:
			return fmt.Errorf("%s is too small: give at least %d", s, least)
		}
		*to = n << shift
		return nil
	}
}

// unless leaves a word alone where another setting says that it plays no part.
func unless(other *string, set func(string) error) func(string) error {
	return func(s string) error {
		if *other != "" {
			return nil
		}
		return set(s)
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

// narrow takes a filter as Zulip's API does: a JSON list of [operator, operand], both
// text.
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

// natsURLs takes one or more addresses of NATS servers, with commas between.
func natsURLs(to *string) func(string) error {
	return func(s string) error {
		var urls []string
		if err := list(&urls)(s); err != nil {
			return err
		}
		*to = strings.Join(urls, ",")
		return stream.CheckURLs(*to)
	}
}
