package cli

import (
	"fmt"
	"io"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// man prints the manual page, made from what help says.
func (a *app) man() *urfave.Command {
	return &urfave.Command{
		Name:  "man",
		Usage: "print the manual page",
		Description: "To read it: zulip-nats man | man -l -\n" +
			"To install it: zulip-nats man > /usr/local/share/man/man1/zulip-nats.1",
		Action: func(u *urfave.Context) error { return manual(a.stdout, u.App) },
	}
}

// manual writes roff, with the macros of man(7). It has no date, so that the same program
// gives the same page.
func manual(w io.Writer, u *urfave.App) error {
	var b strings.Builder
	line := func(format string, v ...any) { fmt.Fprintf(&b, format+"\n", v...) }
	text := func(s string) {
		for part := range strings.SplitSeq(s, "\n") {
			line("%s", roff(part))
			line(".br")
		}
	}
	line(`.TH ZULIP\-NATS 1 "" "zulip\-nats %s" "User Commands"`, roff(readBuild().version))
	line(".SH NAME\nzulip\\-nats \\- %s", roff(u.Usage))
	line(".SH SYNOPSIS")
	line(".B zulip\\-nats\n.I command\n[options]")
	line(".SH DESCRIPTION")
	text("Each option --foo-bar is also the variable ZULIP_NATS_FOO_BAR; where that holds a secret, " +
		"ZULIP_NATS_FOO_BAR_FILE names a file with it. The command line comes before variables.")
	line(".SH COMMANDS")
	for _, c := range u.VisibleCommands() {
		line(".SS %s", roff(c.Name))
		text(c.Usage)
		if c.UsageText != "" {
			line(".PP\n.B %s", roff(c.UsageText))
		}
		if c.Description != "" {
			line(".PP")
			text(c.Description)
		}
		for _, o := range optionsOf(c) {
			if o.Hidden {
				continue
			}
			line(".TP")
			head := `\fB` + roff("--"+o.Name) + `\fR`
			if value := o.value(); value != "" {
				head += ` \fI` + roff(value) + `\fR`
			}
			line("%s", head)
			line("%s", roff(o.says()))
			if o.DefaultText != "" {
				line("%s", roff("(default: "+o.DefaultText+")"))
			}
			line("%s", roff("["+strings.Join(o.EnvVars, ", ")+"]"))
		}
	}
	line(".SH EXIT STATUS")
	for _, code := range []struct {
		code int
		what string
	}{
		{exitOK, "stopped, or done"}, {exitRuntime, "it could not go on, or something is not well"},
		{exitUsage, "the command line or a variable is wrong"},
		{exitConfig, "something that an operator has to mend first: a file, a key, a server or a stream"},
	} {
		line(".TP\n.B %d\n%s", code.code, roff(code.what))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// roff is text that means nothing to roff.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, `"`, `\(dq`, "`", `\(ga`, "~", `\(ti`,
		"^", `\(ha`).Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}
