package oci

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

// Host lets a registry, a token server or a store that a registry redirects to have addresses of its own.
type Host struct {
	// Name is a host name ("registry.example", "registry.example:5000" for that port only) or, with a leading dot, all names
	// below it.
	Name string
	// Prefixes are the networks, otherwise refused, in which the host may be.
	Prefixes []netip.Prefix
}

func (h Host) matches(host, port string) bool {
	name, wanted, found := strings.Cut(strings.ToLower(h.Name), ":")
	if strings.HasPrefix(name, "[") || strings.Count(h.Name, ":") > 1 { // an IPv6 address
		var err error
		if name, wanted, err = net.SplitHostPort(h.Name); err != nil {
			name, found = strings.Trim(h.Name, "[]"), false
		} else {
			found = true
		}
	}
	if found && wanted != port {
		return false
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if strings.HasPrefix(name, ".") {
		return strings.HasSuffix(host, name)
	}
	return host == name
}

// special are networks that lead nowhere on the internet, or by way of a wrapped IPv4 address anywhere (IANA's registries of
// special-purpose addresses). Private, loopback, link-local and multicast ones are not listed here.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("3fff::/20"),
}

// unicast6 is all that IANA has given out of IPv6 (RFC 4291, section 2.4). What wraps IPv4 addresses lies outside: NAT64, SIIT, and
// those that stand for an IPv4 address themselves.
var unicast6 = netip.MustParsePrefix("2000::/3")

// public reports whether an address is of the internet. IPv4 in IPv6 is judged as the IPv4 address.
func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if a.Is6() && !unicast6.Contains(a) {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return a.IsGlobalUnicast() && !a.IsPrivate()
}

// guard judges the address that is connected to, not the name: names change their mind.
type guard struct {
	named    []string       // host:port to which all addresses are open
	prefixes []netip.Prefix // open to all hosts
	hosts    []Host
	resolver *net.Resolver // nil is the system's
}

func (g *guard) isNamed(hostport string) bool {
	for _, n := range g.named {
		if strings.EqualFold(n, hostport) {
			return true
		}
	}
	return false
}

func (g *guard) listed(host, port string) *Host {
	for i := range g.hosts {
		if g.hosts[i].matches(host, port) {
			return &g.hosts[i]
		}
	}
	return nil
}

// dial connects for requests to addr ("host:port").
func (g *guard) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout, Resolver: g.resolver, Control: func(_, address string, _ syscall.RawConn) error {
		return g.check(host, port, address)
	}}
	return d.DialContext(ctx, network, addr)
}

func (g *guard) check(host, port, address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	a := ap.Addr().Unmap().WithZone("")
	if public(a) || contains(g.prefixes, a) {
		return nil
	}
	if h := g.listed(host, port); h != nil && contains(h.Prefixes, a) {
		return nil
	}
	return blocked("%s is at %s, an address that must not be asked unless its network is allowed", host, a)
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func blocked(format string, args ...any) error {
	return fault.New(fault.Denied, string(verify.ReasonRegistryBlocked), nil, format, args...)
}
