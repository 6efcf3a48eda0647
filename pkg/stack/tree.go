package stack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
	"github.com/attestry/attestry/pkg/log/trillian"
)

// Stores of a log's tree.
const (
	StorePosix    = "posix"             // a directory; one process
	StoreS3       = "s3"                // Tessera on S3 and MySQL
	StoreTrillian = "trillian"          // a Trillian log server and signer, Rekor v1 only
	StoreEmbedded = "trillian-embedded" // Trillian's storage on PostgreSQL, in this process, Rekor v1 only
)

// TreeSpec says where a log's tree is. It is the `tree` of a log in tlog's configuration.
type TreeSpec struct {
	// Store is posix, s3, trillian or trillian-embedded. Default posix: dir/<log>/tiles.
	Store string `mapstructure:"store"`

	// Endpoint is the URL of the S3 API. Its server must honour If-None-Match and show a write to the next read.
	Endpoint string `mapstructure:"endpoint"`
	// Region is what requests are signed for. Default us-east-1.
	Region string `mapstructure:"region"`
	// Bucket exists already.
	Bucket string `mapstructure:"bucket"`
	// Prefix stands before every key in the bucket. Default the log's name and a slash.
	Prefix string `mapstructure:"prefix"`
	// PathStyle puts the bucket into the path and not into the host name. Default false.
	PathStyle bool `mapstructure:"path-style"`
	// AccessKeyFile and SecretKeyFile hold the credentials.
	AccessKeyFile string `mapstructure:"access-key-file"`
	SecretKeyFile string `mapstructure:"secret-key-file"`
	// AmbientCredentials takes credentials from the environment and the cloud's metadata service instead,
	// which is contacted then. Default false.
	AmbientCredentials bool `mapstructure:"ambient-credentials"`
	// MySQLDSN is user@tcp(host:port)/database?tls=true: a database for this log alone, with MySQL 8 or MariaDB 10.11.
	MySQLDSN string `mapstructure:"mysql-dsn"`
	// MySQLPasswordFile holds the password of mysql-dsn.
	MySQLPasswordFile string `mapstructure:"mysql-password-file"`

	// Address is host:port of a Trillian log server.
	Address string `mapstructure:"address"`
	// TreeID is what Trillian's createtree printed. It is not the tree ID of the Rekor API.
	TreeID int64 `mapstructure:"tree-id"`
	// CAFile has the certificates that the log server's must lead to. Default: no TLS.
	CAFile string `mapstructure:"ca-file"`

	// PostgresURI names the database of embedded Trillian: postgres://user@host/database?passfile=FILE.
	PostgresURI string `mapstructure:"postgres-uri"`
}

// Validate adds what is wrong to p; at names the log.
func (s TreeSpec) Validate(p *config.Problems, at string, kind log.Kind) {
	need := func(name, value string) {
		if value == "" {
			p.Addf("%s.tree.%s is required with store %s", at, name, s.Store)
		}
	}
	switch s.Store {
	case "", StorePosix:
	case StoreS3:
		need("endpoint", s.Endpoint)
		need("bucket", s.Bucket)
		need("mysql-dsn", s.MySQLDSN)
		if !s.AmbientCredentials {
			need("access-key-file", s.AccessKeyFile)
			need("secret-key-file", s.SecretKeyFile)
		}
	case StoreTrillian:
		need("address", s.Address)
		if s.TreeID <= 0 {
			p.Addf("%s.tree.tree-id is required with store trillian: what `createtree --admin_server=%s` prints", at, s.Address)
		}
	case StoreEmbedded:
		need("postgres-uri", s.PostgresURI)
	default:
		p.Addf("%s.tree.store %q is not one of posix, s3, trillian, trillian-embedded", at, s.Store)
	}
	if (s.Store == StoreTrillian || s.Store == StoreEmbedded) && kind != log.Rekor1 {
		p.Addf("%s.tree.store %s keeps no tiles, which clients of this log read: it is for rekor1 alone", at, s.Store)
	}
}

// Shared tells whether several processes may have the tree open. Such a log is fed from a queue in the database.
func (s TreeSpec) Shared() bool { return s.Store != "" && s.Store != StorePosix }

// openTree is a log's tree and how it is closed.
type openTree interface {
	log.Tree
	io.Closer
}

// open opens the tree of the log called label, whose own directory is dir.
func (s TreeSpec) open(ctx context.Context, kind log.Kind, label, dir string) (openTree, error) {
	switch s.Store {
	case "", StorePosix:
		return tiles.Open(ctx, filepath.Join(dir, "tiles"), kind)
	case StoreS3:
		return tiles.OpenS3(ctx, s.s3(label), kind)
	case StoreTrillian:
		return s.trillian(ctx)
	case StoreEmbedded:
		return trillian.OpenEmbedded(ctx, trillian.EmbeddedOptions{URI: s.PostgresURI, Name: label})
	default:
		return nil, errors.New("unknown store of a tree: " + s.Store)
	}
}

// read opens the tree where it is for reading alone, whoever else has it open. The second result closes it.
func (s TreeSpec) read(ctx context.Context, kind log.Kind, label, dir string) (log.TreeReader, func() error, error) {
	var tree interface {
		log.TreeReader
		io.Closer
	}
	var err error
	switch s.Store {
	case "", StorePosix:
		tree, err := tiles.OpenDir(filepath.Join(dir, "tiles"), kind)
		return tree, func() error { return nil }, err
	case StoreS3:
		tree, err = tiles.OpenS3Reader(ctx, s.s3(label), kind)
	case StoreTrillian:
		tree, err = s.trillian(ctx) // reads until something is appended
	case StoreEmbedded:
		tree, err = trillian.OpenEmbeddedReader(ctx, trillian.EmbeddedOptions{URI: s.PostgresURI, Name: label})
	default:
		err = errors.New("unknown store of a tree: " + s.Store)
	}
	if err != nil {
		return nil, nil, err
	}
	return tree, tree.Close, nil
}

func (s TreeSpec) s3(label string) tiles.S3Options {
	prefix := s.Prefix
	if prefix == "" {
		prefix = label + "/"
	}
	return tiles.S3Options{
		Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket, Prefix: prefix, PathStyle: s.PathStyle,
		AccessKeyFile: s.AccessKeyFile, SecretKeyFile: s.SecretKeyFile, AmbientCredentials: s.AmbientCredentials,
		MySQLDSN: s.MySQLDSN, MySQLPasswordFile: s.MySQLPasswordFile,
	}
}

func (s TreeSpec) trillian(ctx context.Context) (*trillian.Tree, error) {
	o := trillian.Options{Address: s.Address, TreeID: s.TreeID}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tree.ca-file: %w", err)
		}
		o.TLS = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		if !o.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tree.ca-file %s: no certificates", s.CAFile)
		}
	}
	return trillian.Open(ctx, o)
}
