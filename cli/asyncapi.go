package cli

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"zulip-nats/asyncapi"
	"zulip-nats/poller"
	"zulip-nats/redact"
)

// asyncapi prints a document about what `run` puts on the bus with the same settings. It
// connects to nothing.
func (a *app) asyncapi() *urfave.Command {
	c := defaults()
	options := c.settings()
	return &urfave.Command{
		Name:      "asyncapi",
		Usage:     "print an AsyncAPI document of what run puts on the bus",
		UsageText: "zulip-nats asyncapi [--realm NAME | --zuliprc FILE] [--nats-url URL] [options of run]",
		Description: "Takes the options of run about Zulip, NATS and the stream, and prints what comes of them as AsyncAPI " +
			asyncapi.Version + ", in JSON: servers, subjects, headers and bodies. It connects to nothing. With --realm it needs " +
			"no zuliprc. Of addresses it prints scheme, host and port, and no user, password or key.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := errors.Join(parse(options), c.check()); err != nil {
				return err
			}
			doc, err := describe(&c)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(doc)
			return err
		},
	}
}

// describe makes the document of the settings.
func describe(c *Config) ([]byte, error) {
	r := &c.Realms[0]
	var site string
	if r.Name == "" {
		account, err := poller.LoadAccount(r.Account)
		if err != nil {
			return nil, hint(err, "or name the organization with --realm, which needs no zuliprc")
		}
		site = account.Site
	}
	realm, err := r.realm(site)
	if err != nil {
		return nil, err
	}
	d := asyncapi.Config{Realm: realm, Stream: cmp.Or(r.Stream, "ZULIP_"+realm.String()), Types: r.Queue.EventTypes,
		Excluded: r.Queue.ExcludeTypes, CloudEvents: r.CloudEvents, Program: readBuild().version}
	urls := cmp.Or(c.NATS.URL, fmt.Sprintf("nats://127.0.0.1:%d", c.NATSPort))
	for address := range strings.SplitSeq(urls, ",") {
		if address = strings.TrimSpace(address); !strings.Contains(address, "://") {
			address = "nats://" + address
		}
		if shown := redact.URL(address); shown != "" {
			d.Servers = append(d.Servers, shown)
		}
	}
	return asyncapi.Document(d)
}
