package cli

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/synadia-io/orbit.go/natscontext"

	"zulip-nats/redact"
)

// useContext takes from a context of the nats command what no option says. An option that
// says who we are stands for all of those.
func (c *Config) useContext() error {
	s, err := loadContext(c.Context)
	if err != nil {
		return err
	}
	bad := func(setting, instead string) error {
		return configErrorf("the NATS context %s has the setting %s, which is not known here; %s",
			shownContext(c.Context), setting, instead)
	}
	switch {
	case s.NSCLookup != "":
		return bad("nsc", "give the credentials file with --nats-creds")
	case s.SocksProxy != "":
		return bad("socks_proxy", "use a context without it")
	case s.WinCertStoreType != "":
		return bad("windows_cert_store", "give certificate and key as files, with --nats-cert and --nats-key")
	}
	n := &c.NATS
	fill := func(to *string, value string) {
		if *to == "" {
			*to = value
		}
	}
	fill(&n.URL, s.URL)
	fill(&n.URL, nats.DefaultURL) // as the nats command does
	if n.Creds+n.NKey+n.JWT+n.Seed+n.User+n.Password+n.Token == "" {
		if s.UserJwt != "" { // the library does not give the seed that belongs to it
			return bad("user_jwt", "give it and its seed with --nats-jwt and --nats-seed, or in a credentials file")
		}
		for _, v := range []struct {
			name, value string
			to          *string
		}{
			{"creds", home(s.Creds), &n.Creds}, {"nkey", home(s.NKey), &n.NKey}, {"user", s.User, &n.User},
			{"password", s.Password, &n.Password},
			{"token", s.Token, &n.Token},
		} {
			// Newer contexts may name another store: op://vault/item, env://NAME
			// (nats-io/jsm.go, natscontext).
			if strings.Contains(v.value, "://") {
				return bad(v.name+" in another store", "give it here, as a variable or as a file")
			}
			*v.to = v.value
		}
	}
	if n.Cert+n.Key == "" {
		n.Cert, n.Key = home(s.Cert), home(s.Key)
	}
	fill(&n.CA, home(s.CA))
	fill(&n.InboxPrefix, s.InboxPrefix)
	n.TLSFirst = n.TLSFirst || s.TLSFirst
	if c.JSDomain+c.JSAPIPrefix == "" {
		if c.JSAPIPrefix = s.JSAPIPrefix; c.JSAPIPrefix == "" {
			c.JSDomain = s.JSDomain
		}
	}
	return nil
}

// loadContext reads a context, by name or by the absolute path of its file. The library
// gives the settings together with a connection only: so it makes one that goes nowhere,
// without a look at the address.
func loadContext(name string) (natscontext.Settings, error) {
	if strings.HasSuffix(name, ".json") { // a path, which may be relative for the nats command too
		if path, err := filepath.Abs(home(name)); err == nil {
			name = path
		}
	}
	nowhere := func(o *nats.Options) error {
		o.Servers, o.CustomDialer, o.SkipHostLookup, o.RetryOnFailedConnect = []string{nats.DefaultURL},
			noDialer{}, true, true
		o.ReconnectErrCB = func(*nats.Conn, error) {}
		return nil
	}
	nc, settings, err := natscontext.Connect(name, nowhere)
	if err == nil {
		nc.Close()
		return settings, nil
	}
	// What the library says may quote the file, or what nsc printed.
	why := "look at it with `nats context show`, and use what is in it with the options instead"
	_, isSyntax := errors.AsType[*json.SyntaxError](err)
	_, isType := errors.AsType[*json.UnmarshalTypeError](err)
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		why = "the file " + redact.Path(p.Path) + " cannot be read: " + redact.FileError(err)
	} else if isSyntax || isType {
		why = "its file is no JSON of the form that the nats command writes"
	} else if strings.HasPrefix(err.Error(), "unknown context") || strings.HasPrefix(err.Error(), "invalid context") {
		why = "there is none of this name (`nats context ls` lists them; they are files in " +
			"$XDG_CONFIG_HOME/nats/context or ~/.config/nats/context)"
	}
	return natscontext.Settings{}, configErrorf("the NATS context %s cannot be used: %s", shownContext(name), why)
}

// shownContext is the name of a context, or of its file, as it may be printed.
func shownContext(name string) string {
	if strings.HasSuffix(name, ".json") {
		return redact.Path(name)
	}
	return strconv.Quote(redact.Text(name))
}

// noDialer is a way to nowhere.
type noDialer struct{}

func (noDialer) Dial(string, string) (net.Conn, error) { return nil, errors.New("not connecting") }

// home puts the home folder in the place of ~, the one that the library takes.
func home(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if u, err := user.Current(); err == nil {
			return filepath.Join(u.HomeDir, rest)
		}
	}
	return path
}
