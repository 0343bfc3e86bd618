// Runs tests of the suite, and prints each with its result. The arguments are the folder of the suite, the URL of the
// cache, and the ids of the tests; without ids, all tests run.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
const [folder, base, ...ids] = process.argv.slice(2)
const load = file => import(pathToFileURL(`${folder}/${file}`))
const { runTests, getResults } = await load('client/runner.mjs')
const suites = (await load('tests/index.mjs')).default.map(suite => ({
  ...suite, tests: suite.tests.filter(test => ids.length === 0 || ids.includes(test.id))
}))
await runTests(suites, createRequire(`${folder}/cli.mjs`)('node-fetch'), false, base)
const results = getResults()
const tests = suites.flatMap(suite => suite.tests.filter(test => test.id in results).map(test => ({
  suite: suite.name, id: test.id, kind: test.kind || 'required', passed: results[test.id] === true, detail: String(results[test.id])
})))
console.log(JSON.stringify(tests))
