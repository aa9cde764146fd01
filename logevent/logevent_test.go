package logevent_test

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"zulip-nats/logevent"
)

const self = "zulip-nats/logevent"

// notOurs are packages that the product imports, or that are beside it, and that write no
// log of the product: the simulator and what only tests use.
var notOurs = regexp.MustCompile(`^zulip-nats/(zulipsim|integration_test|stream/natstest|stream/model)(/|$)`)

// product is the product's code, type-checked.
type product struct {
	t    *testing.T
	fset *token.FileSet
	info *types.Info
	pkgs map[string][]*ast.File
	logs *types.Package // this package
}

// load has the go command compile the imports, and checks the packages themselves from
// source.
func load(t *testing.T) *product {
	t.Helper()
	list := exec.Command("go", "list", "-deps", "-export", "-f",
		`{{.ImportPath}}|{{.Export}}|{{.Dir}}|{{join .GoFiles ","}}`, "zulip-nats/...")
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	p := &product{t: t, fset: token.NewFileSet(), pkgs: map[string][]*ast.File{},
		info: &types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{},
			Types:      map[ast.Expr]types.TypeAndValue{},
			Selections: map[*ast.SelectorExpr]*types.Selection{}}}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		part := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		exports[part[0]] = part[1]
		if part[0] != "zulip-nats" && !strings.HasPrefix(part[0], "zulip-nats/") || notOurs.MatchString(part[0]) {
			continue
		}
		// So that a file that is added makes the result of before stale for go test.
		if _, err := os.ReadDir(part[2]); err != nil {
			t.Fatal(err)
		}
		for name := range strings.SplitSeq(part[3], ",") {
			if name == "" {
				continue
			}
			f, err := parser.ParseFile(p.fset, filepath.Join(part[2], name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			p.pkgs[part[0]] = append(p.pkgs[part[0]], f)
		}
	}
	imports := importer.ForCompiler(p.fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})
	for path, files := range p.pkgs {
		pkg, err := (&types.Config{Importer: imports}).Check(path, p.fset, files, p.info)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if path == self {
			p.logs = pkg
		}
	}
	for _, path := range []string{"zulip-nats", self, "zulip-nats/cli", "zulip-nats/bridge", "zulip-nats/poller",
		"zulip-nats/stream", "zulip-nats/fleet", "zulip-nats/embedded"} {
		if p.pkgs[path] == nil {
			t.Fatalf("the package %s was not found", path)
		}
	}
	return p
}

func (p *product) errorf(at ast.Node, format string, v ...any) {
	p.t.Helper()
	pos := p.fset.Position(at.Pos())
	p.t.Errorf("%s/%s:%d: %s", filepath.Base(filepath.Dir(pos.Filename)), filepath.Base(pos.Filename), pos.Line,
		fmt.Sprintf(format, v...))
}

// names are the constants of this package: their Go names and values.
func (p *product) names() map[string]logevent.Name {
	names := map[string]logevent.Name{}
	for _, name := range p.logs.Scope().Names() {
		if c, ok := p.logs.Scope().Lookup(name).(*types.Const); ok && named(c.Type(), self, "Name") {
			names[name] = logevent.Name(constant.StringVal(c.Val()))
		}
	}
	return names
}

// named says whether it is that type, or a pointer to it.
func named(t types.Type, pkg, name string) bool {
	if ptr, ok := t.(*types.Pointer); ok {
		t = ptr.Elem()
	}
	n, ok := t.(*types.Named)
	return ok && n.Obj().Pkg() != nil && n.Obj().Pkg().Path() == pkg && n.Obj().Name() == name
}

// of gives the names that an expression may have: a constant of this package, or a local
// variable that is given nothing else. ok is false for all others.
func (p *product) of(e ast.Expr, within *ast.FuncDecl) (values []logevent.Name, ok bool) {
	var id *ast.Ident
	switch e := e.(type) {
	case *ast.SelectorExpr:
		id = e.Sel
	case *ast.Ident:
		id = e
	default:
		return nil, false
	}
	switch o := p.info.Uses[id].(type) {
	case *types.Const:
		return []logevent.Name{logevent.Name(constant.StringVal(o.Val()))}, o.Pkg() != nil && o.Pkg().Path() == self
	case *types.Var:
		if within == nil {
			return nil, false
		}
		ok = true
		ast.Inspect(within, func(n ast.Node) bool {
			a, is := n.(*ast.AssignStmt)
			if !is || len(a.Lhs) != len(a.Rhs) {
				return true
			}
			for i, to := range a.Lhs {
				if to, is := to.(*ast.Ident); is && (p.info.Defs[to] == o || p.info.Uses[to] == o) {
					more, known := p.of(a.Rhs[i], nil)
					values, ok = append(values, more...), ok && known
				}
			}
			return true
		})
		return values, ok && len(values) > 0
	}
	return nil, false
}

// loud are the ways of zerolog to begin a line that is not for debugging, or may not be.
var loud = []string{"Info", "Warn", "Error", "Err", "Fatal", "Panic", "WithLevel", "Log", "Print", "Printf", "Println",
	"Write"}

// said looks at each line that is begun in the code, and gives the levels of each name
// and the names of all fields.
func (p *product) said() (levels map[logevent.Name][]string, fields map[string]bool) {
	levels, fields = map[logevent.Name][]string{}, map[string]bool{logevent.Field: true}
	for path, files := range p.pkgs {
		if path == self {
			continue
		}
		for _, f := range files {
			for _, i := range f.Imports {
				if i.Path.Value == `"github.com/rs/zerolog/log"` {
					p.errorf(i, "the global logger knows no realm")
				}
			}
			for _, d := range f.Decls {
				fn, _ := d.(*ast.FuncDecl)
				ast.Inspect(d, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.SelectorExpr:
						p.begun(n, fn, levels)
					case *ast.CallExpr:
						p.field(n, fields)
					}
					return true
				})
			}
		}
	}
	return levels, fields
}

// begun takes note of a line that is begun there, if one is.
func (p *product) begun(n *ast.SelectorExpr, within *ast.FuncDecl, levels map[logevent.Name][]string) {
	s := p.info.Selections[n]
	switch {
	case s == nil:
	case named(s.Recv(), "github.com/rs/zerolog", "Logger") && slices.Contains(loud, n.Sel.Name):
		p.errorf(n, "a line without a name: begin it with logevent.NAME.%s", n.Sel.Name)
	case named(s.Recv(), self, "Name") && s.Kind() == types.MethodVal:
		values, ok := p.of(n.X, within)
		if !ok {
			p.errorf(n, "the name of a line is no constant of logevent")
		}
		for _, v := range values {
			if level := strings.ToLower(n.Sel.Name); !slices.Contains(levels[v], level) {
				levels[v] = append(levels[v], level)
			}
		}
	}
}

// field takes note of the name of a field that a line gets.
func (p *product) field(n *ast.CallExpr, fields map[string]bool) {
	fun, ok := n.Fun.(*ast.SelectorExpr)
	if !ok || len(n.Args) == 0 {
		return
	}
	s := p.info.Selections[fun]
	if s == nil || !named(s.Recv(), "github.com/rs/zerolog", "Event") &&
		!named(s.Recv(), "github.com/rs/zerolog", "Context") {
		return
	}
	switch value := p.info.Types[n.Args[0]].Value; {
	case fun.Sel.Name == "Err":
		fields["error"] = true
	case value != nil && value.Kind() == constant.String && !strings.HasPrefix(fun.Sel.Name, "Msg"):
		fields[constant.StringVal(value)] = true
	}
}

// doc is a row of docs/log.md.
type doc struct{ levels, means, do string }

var (
	row  = regexp.MustCompile("^\\| `([^`]*)` \\| ([^|]*) \\| ([^|]*) \\| ([^|]*) \\|$")
	word = regexp.MustCompile("`([a-z]+(?:_[a-z]+)*)`")
)

// documented reads docs/log.md, and complains of a name that is there twice. mentioned
// are the words in the other places that look like a name or a field.
func documented(t *testing.T) (docs map[logevent.Name]doc, mentioned []string) {
	t.Helper()
	f, err := os.Open("../docs/log.md")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	docs = map[logevent.Name]doc{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if m := row.FindStringSubmatch(line); m != nil {
			name := logevent.Name(m[1])
			if _, twice := docs[name]; twice {
				t.Errorf("docs/log.md has %s twice", name)
			}
			docs[name] = doc{m[2], m[3], m[4]}
			line = m[2] + m[3] + m[4]
		} else if strings.HasPrefix(line, "| `") {
			t.Errorf("docs/log.md: a row that has not four cells: %s", line)
		}
		for _, m := range word.FindAllStringSubmatch(line, -1) {
			mentioned = append(mentioned, m[1])
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return docs, mentioned
}

// Each line above debug level has a name that is a constant, each constant is used, and
// docs/log.md says of each what it means and what to do, with the levels that it has, and
// of nothing else.
func TestEachLineHasANameAndEachNameItsWords(t *testing.T) {
	p := load(t)
	levels, fields := p.said()
	docs, mentioned := documented(t)
	known := map[logevent.Name]bool{}
	names := p.names()
	for _, constant := range slices.Sorted(maps.Keys(names)) {
		name := names[constant]
		if known[name] {
			t.Errorf("the name %s is there twice", name)
		}
		known[name] = true
		if !regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`).MatchString(string(name)) {
			t.Errorf("%s = %q is no snake_case", constant, name)
		}
		if len(levels[name]) == 0 {
			t.Errorf("no line has the name %s (%s)", constant, name)
		}
		d, is := docs[name]
		if !is {
			t.Errorf("docs/log.md says nothing of %s", name)
			continue
		}
		slices.SortFunc(levels[name], func(a, b string) int {
			order := []string{"info", "warn", "error"}
			return slices.Index(order, a) - slices.Index(order, b)
		})
		if want := strings.Join(levels[name], ", "); d.levels != want {
			t.Errorf("docs/log.md has %s at the level %q; in the code it is %q", name, d.levels, want)
		}
		if len(d.means) < 10 || d.do == "" {
			t.Errorf("docs/log.md does not say what %s means, or what to do", name)
		}
	}
	if len(known) < 50 {
		t.Errorf("only %d names were found: %v", len(known), slices.Collect(maps.Keys(known)))
	}
	for name := range docs {
		if !known[name] {
			t.Errorf("docs/log.md has %s, which no line has", name)
		}
	}
	for _, w := range mentioned {
		if !known[logevent.Name(w)] && !fields[w] && !slices.Contains([]string{"level", "message", "time"}, w) {
			t.Errorf("docs/log.md speaks of `%s`, which is neither a name nor a field of a line", w)
		}
	}
}

// A line begins with its level and its name; one below the level of the log is none.
func TestLine(t *testing.T) {
	var out bytes.Buffer
	log := zerolog.New(&out).Level(zerolog.InfoLevel).With().Str("realm", "acme").Logger()
	logevent.NATSBack.Info(log).Msg("one")
	logevent.NATSAway.Warn(log).Msg("two")
	logevent.GapOpened.Error(log).Str("queue", "q").Msg("three")
	logevent.NATSBack.Info(log.Level(zerolog.WarnLevel)).Msg("four")
	want := `{"level":"info","realm":"acme","event":"nats_back","message":"one"}
{"level":"warn","realm":"acme","event":"nats_away","message":"two"}
{"level":"error","realm":"acme","event":"gap_opened","queue":"q","message":"three"}
`
	if out.String() != want {
		t.Errorf("the log is\n%swant\n%s", out.String(), want)
	}
}
