'use strict';

const { execFile, spawn } = require('node:child_process');
const { readFileSync } = require('node:fs');
const path = require('node:path');

const startTime = 30_000; // milliseconds, from spawn to ready
const maxOutput = 64 << 10; // characters of what the program says that are kept for errors

/** Reads the `export NAME='VALUE'` lines of client/env. */
function readEnv(file) {
  const env = {};
  for (const line of readFileSync(file, 'utf8').split('\n')) {
    const found = /^export (\w+)=(.*)$/.exec(line);
    if (found) env[found[1]] = found[2].replace(/^'(.*)'$/, '$1');
  }
  return env;
}

class Sigstore {
  #child;
  #ended;

  constructor(binary, child, ended, url, dir) {
    this.binary = binary;
    this.url = url;
    this.tufURL = `${url}/tuf`;
    this.issuerURL = `${url}/oidc`;
    this.dir = dir;
    this.env = readEnv(path.join(dir, 'client', 'env'));
    this.#child = child;
    this.#ended = ended;
  }

  /** Path of a file for clients, such as trusted_root.json. */
  file(name) {
    return path.join(this.dir, 'client', name);
  }

  /** An identity token. claims are added last and replace any. */
  token(email, claims = {}) {
    const args = ['token', '--dir', this.dir, '--email', email];
    for (const [name, value] of Object.entries(claims)) args.push('--claim', `${name}=${JSON.stringify(value)}`);
    return new Promise((resolve, reject) => {
      execFile(this.binary, args, (err, stdout, stderr) => (err ? reject(new Error(stderr || err.message)) : resolve(stdout.trim())));
    });
  }

  /** Ends the instance; its directory is removed. */
  async stop() {
    this.#child.stdin.end();
    await this.#ended;
  }
}

/**
 * Starts an instance and resolves when all of it answers. It ends with stop(), and with this process, however that ends.
 */
function start(options = {}) {
  const binary = options.binary ?? process.env.ATTESTRY_BIN ?? 'attestry';
  // The program stops when its standard input ends, which a killed parent cannot prevent.
  const args = ['up', '--ephemeral', '--until-eof', '--listen', '127.0.0.1:0', ...(options.args ?? [])];
  const child = spawn(binary, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  let said = '';
  let wrong = '';
  child.stdin.on('error', () => {}); // it ended first: 'exit' tells
  const ended = new Promise((resolve) => child.once('close', resolve));
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      reject(new Error(`attestry was not ready after ${startTime / 1000} s: ${wrong}`));
    }, startTime);
    child.once('error', (err) => {
      clearTimeout(timer);
      reject(new Error(`${binary}: ${err.message}; name the program with ATTESTRY_BIN`));
    });
    child.once('close', (code, signal) => {
      clearTimeout(timer);
      reject(new Error(`attestry ended with ${signal ?? code}: ${wrong}`));
    });
    child.stderr.on('data', (data) => { wrong = (wrong + data).slice(-maxOutput); });
    child.stdout.on('data', (data) => {
      said = (said + data).slice(-maxOutput);
      const found = /^attestry is ready at (\S+) .*\n {2}data +(.+) \(removed at the end\)\n/m.exec(said);
      if (!found) return;
      clearTimeout(timer);
      try {
        resolve(new Sigstore(binary, child, ended, found[1], found[2]));
      } catch (err) {
        child.stdin.end();
        reject(err);
      }
    });
  });
}

module.exports = { start };
