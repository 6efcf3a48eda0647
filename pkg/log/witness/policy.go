package witness

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Limits of a policy; c2sp.org/tlog-policy asks for at least 32 of each.
const (
	maxPolicy     = 512 << 10 // bytes
	maxComponents = 64        // logs, witnesses, groups
)

// Policy says who has to cosign a checkpoint (c2sp.org/tlog-policy).
type Policy struct {
	Logs      []Log
	Witnesses []Witness
	quorum    *component // nil for "quorum none"
}

// Log is a log that the policy knows.
type Log struct {
	Key Key    // its name is the log's origin
	URL string // "" when the policy gives none
}

// Witness is a witness that the policy knows.
type Witness struct {
	Name string // inside the policy
	Key  Key
	URL  string // submission prefix without trailing slash, "" when the policy gives none
}

// component is a witness or a group. Each is a member of one group at most, so they form trees.
type component struct {
	witness   int // index, when there are no members
	threshold int
	members   []*component
}

// satisfied tells whether the witnesses that has holds make up the component.
func (c *component) satisfied(has func(witness int) bool) bool {
	if c.members == nil {
		return has(c.witness)
	}
	n := 0
	for _, member := range c.members {
		if member.satisfied(has) {
			n++
		}
	}
	return n >= c.threshold
}

// witnesses appends the indexes of all witnesses under the component.
func (c *component) witnesses(to []int) []int {
	if c.members == nil {
		return append(to, c.witness)
	}
	for _, member := range c.members {
		to = member.witnesses(to)
	}
	return to
}

// Quorum returns the indexes of the witnesses that can count for the quorum, none for "quorum none".
func (p *Policy) Quorum() []int {
	if p.quorum == nil {
		return nil
	}
	return p.quorum.witnesses(nil)
}

// Satisfied tells whether cosignatures by the witnesses that has holds make the quorum.
func (p *Policy) Satisfied(has func(witness int) bool) bool {
	return p.quorum == nil || p.quorum.satisfied(has)
}

// policyParser holds what the lines so far have defined.
type policyParser struct {
	policy  *Policy
	defined map[string]*component
	member  map[string]bool // names that are in a group
	groups  int
	quorum  bool
}

// ParsePolicy reads a policy. Errors name the line.
func ParsePolicy(text string) (*Policy, error) {
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("policy has over %d bytes", maxPolicy)
	}
	p := policyParser{policy: &Policy{}, defined: map[string]*component{}, member: map[string]bool{}}
	for n, line := range strings.Split(text, "\n") {
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("policy line %d: %w", n+1, err)
		}
	}
	if !p.quorum {
		return nil, fmt.Errorf("policy has no quorum line; write %q if no cosignature is wanted", "quorum none")
	}
	return p.policy, nil
}

func (p *policyParser) line(line string) error {
	if at := strings.IndexFunc(line, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }); at >= 0 {
		return fmt.Errorf("control character %q; lines end with a newline alone", line[at])
	}
	fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
		return nil
	}
	for _, field := range fields {
		if strings.Contains(field, "#") {
			return fmt.Errorf("# in %q: a comment stands on a line of its own", field)
		}
	}
	switch args := fields[1:]; fields[0] {
	case "log":
		return p.log(args)
	case "witness":
		return p.witness(args)
	case "group":
		return p.group(args)
	case "quorum":
		return p.setQuorum(args)
	default:
		return fmt.Errorf("unknown keyword %q; it is log, witness, group or quorum", fields[0])
	}
}

func (p *policyParser) log(args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return fmt.Errorf("want: log VKEY [URL]")
	}
	if len(p.policy.Logs) == maxComponents {
		return fmt.Errorf("over %d logs", maxComponents)
	}
	key, err := ParseKey(args[0])
	if err != nil {
		return err
	}
	if key.kind != Ed25519 && key.kind != ECDSA {
		return fmt.Errorf("log %s: signature type 0x%02x is no log's", key.name, byte(key.kind))
	}
	if slices.ContainsFunc(p.policy.Logs, func(l Log) bool { return l.Key.same(key) }) {
		return fmt.Errorf("the key of log %s is there twice", key.name)
	}
	l := Log{Key: key}
	if len(args) == 2 {
		if l.URL, err = checkURL(args[1]); err != nil {
			return err
		}
	}
	p.policy.Logs = append(p.policy.Logs, l)
	return nil
}

func (p *policyParser) witness(args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return fmt.Errorf("want: witness NAME VKEY [URL]")
	}
	if len(p.policy.Witnesses) == maxComponents {
		return fmt.Errorf("over %d witnesses", maxComponents)
	}
	if err := p.free(args[0]); err != nil {
		return err
	}
	key, err := ParseKey(args[1])
	if err != nil {
		return err
	}
	if key.kind != CosignEd25519 && key.kind != CosignMLDSA44 {
		return fmt.Errorf("witness %s: signature type 0x%02x is no witness's, it needs 0x04 or 0x06", args[0], byte(key.kind))
	}
	if slices.ContainsFunc(p.policy.Witnesses, func(w Witness) bool { return w.Key.same(key) }) {
		return fmt.Errorf("the key of witness %s is there twice", args[0])
	}
	w := Witness{Name: args[0], Key: key}
	if len(args) == 3 {
		if w.URL, err = checkURL(args[2]); err != nil {
			return err
		}
	}
	p.defined[w.Name] = &component{witness: len(p.policy.Witnesses)}
	p.policy.Witnesses = append(p.policy.Witnesses, w)
	return nil
}

func (p *policyParser) group(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("want: group NAME any|all|NUMBER MEMBER…")
	}
	if p.groups++; p.groups > maxComponents {
		return fmt.Errorf("over %d groups", maxComponents)
	}
	name, threshold, members := args[0], args[1], args[2:]
	if err := p.free(name); err != nil {
		return err
	}
	g := &component{}
	for _, member := range members {
		c := p.defined[member]
		if c == nil {
			return fmt.Errorf("group %s: no line above defines %q", name, member)
		}
		if p.member[member] {
			return fmt.Errorf("group %s: %q is a member already", name, member)
		}
		p.member[member] = true
		g.members = append(g.members, c)
	}
	switch threshold {
	case "any":
		g.threshold = 1
	case "all":
		g.threshold = len(members)
	default:
		n, err := parseSize(threshold)
		if err != nil || n < 1 || n > uint64(len(members)) {
			return fmt.Errorf("group %s: threshold %q is not any, all or a number from 1 to %d", name, threshold, len(members))
		}
		g.threshold = int(n)
	}
	p.defined[name] = g
	return nil
}

func (p *policyParser) setQuorum(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want: quorum NAME|none")
	}
	if p.quorum {
		return fmt.Errorf("a second quorum")
	}
	p.quorum = true
	if args[0] == "none" {
		return nil
	}
	if p.policy.quorum = p.defined[args[0]]; p.policy.quorum == nil {
		return fmt.Errorf("quorum: no line above defines %q", args[0])
	}
	return nil
}

// free says why name cannot be given to a witness or group.
func (p *policyParser) free(name string) error {
	switch name {
	case "log", "witness", "group", "quorum", "any", "all", "none":
		return fmt.Errorf("%q is a reserved word and no name", name)
	}
	if p.defined[name] != nil {
		return fmt.Errorf("the name %q is taken", name)
	}
	return nil
}

// checkURL takes an absolute http or https URL without user, query and fragment, and drops its trailing slashes. What
// net/url would write in another way (dot segments, odd escapes) is refused: it would be asked elsewhere than it says.
func checkURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil ||
		u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", fmt.Errorf("%q is not a URL that begins with http:// or https:// and has no user, query or fragment", text)
	}
	prefix := strings.TrimRight(text, "/")
	if u.JoinPath("add-checkpoint").String() != prefix+"/add-checkpoint" {
		return "", fmt.Errorf("%q is not a URL in its plain form", text)
	}
	return prefix, nil
}
