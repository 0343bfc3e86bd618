// Prints the tests of the suite with their results: its folder, and the file with the results, are the arguments.
import fs from 'fs'
const [folder, file] = process.argv.slice(2)
const suites = (await import(`${folder}/tests/index.mjs`)).default
const results = JSON.parse(fs.readFileSync(file))
const tests = suites.flatMap(suite => suite.tests.filter(test => test.id in results).map(test => ({
  suite: suite.name, id: test.id, kind: test.kind || 'required', passed: results[test.id] === true, detail: String(results[test.id])
})))
console.log(JSON.stringify(tests))
